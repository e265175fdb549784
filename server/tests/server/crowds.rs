use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nightlatch_core::rights::Role;
use nightlatch_proto::pb;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1 as reflection;

use crate::host::{Host, Link};
use crate::world::{SOON, World, problem, until};

/// Longer than anyone is let stay unknown.
const LONG: Duration = Duration::from_secs(20);

async fn has_ended(stream: &mut TcpStream) {
    let mut byte = [0];
    // A reset is an end, too.
    let read = tokio::time::timeout(LONG, stream.read(&mut byte)).await.unwrap();
    assert_eq!(read.unwrap_or_default(), 0);
}

#[tokio::test]
async fn one_address_holds_so_many_connections_and_the_newest_stays() {
    let mut world = World::begin().await;
    world.stop().await;
    world.config.limits.connections_per_address = 3;
    world.start().await;
    let mut admin = world.client(&world.admin()).await;
    let list = pb::ListMachinesRequest::default;
    admin.machines.list_machines(list()).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(TcpStream::connect(world.people()).await.unwrap());
    }
    for stream in &mut held[..18] {
        has_ended(stream).await;
    }
    // Whoever is known stays, and gets in still.
    admin.machines.list_machines(list()).await.unwrap();
    let mut another = world.client(&world.admin()).await;
    another.machines.list_machines(list()).await.unwrap();
}

#[tokio::test]
async fn whoever_says_nothing_holds_up_nobody() {
    let world = World::begin().await;
    let mut held = Vec::new();
    for _ in 0..world.config.limits.connections_per_address + 50 {
        held.push(TcpStream::connect(world.people()).await.unwrap());
    }
    let admitted = async {
        let mut admin = world.client(&world.admin()).await;
        let list = pb::ListMachinesRequest::default();
        admin.machines.list_machines(list).await.unwrap();
    };
    // Sooner than their handshakes end by themselves.
    tokio::time::timeout(Duration::from_secs(5), admitted)
        .await
        .unwrap();
    drop(held);
}

#[tokio::test]
async fn of_one_person_the_newest_connections_stay_and_others_get_in() {
    let mut world = World::begin().await;
    world.stop().await;
    world.config.limits.connections = 70;
    world.start().await;
    let list = pb::ListMachinesRequest::default;
    let reader = world.person("reader", &[Role::Reader]).await;
    let mut held = Vec::new();
    for _ in 0..80 {
        let mut client = world.client(&reader).await;
        client.machines.list_machines(list()).await.unwrap();
        held.push(client);
    }
    let mut admin = world.client(&world.admin()).await;
    admin.machines.list_machines(list()).await.unwrap();
    held[79].machines.list_machines(list()).await.unwrap();
}

#[tokio::test]
async fn nobody_stays_who_does_not_say_who_they_are() {
    let world = World::begin().await;
    let mut admin = world.client(&world.admin()).await;
    let list = pb::ListMachinesRequest::default;
    admin.machines.list_machines(list()).await.unwrap();
    let channel = world.channel_to_people(None).await;
    let watched = HealthClient::new(channel)
        .watch(HealthCheckRequest::default())
        .await;
    let mut anonymous = watched.unwrap().into_inner();
    let channel = world.channel_to_people(Some(&world.admin())).await;
    let watched = HealthClient::new(channel)
        .watch(HealthCheckRequest::default())
        .await;
    let mut known = watched.unwrap().into_inner();
    known.message().await.unwrap();
    anonymous.message().await.unwrap();
    let ended = tokio::time::timeout(LONG, anonymous.message()).await.unwrap();
    assert!(ended.is_err());
    assert!(
        tokio::time::timeout(Duration::from_millis(10), known.message())
            .await
            .is_err()
    );
    admin.machines.list_machines(list()).await.unwrap();
}

#[tokio::test]
async fn streams_that_anyone_may_open_are_few_and_end_when_the_server_stops() {
    let mut world = World::begin().await;
    let channel = world.channel_to_people(None).await;
    let mut health = HealthClient::new(channel.clone());
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(health.watch(HealthCheckRequest::default()).await.unwrap());
    }
    let refused = health.watch(HealthCheckRequest::default()).await.unwrap_err();
    assert_eq!(
        (refused.code(), problem(&refused).reason.as_str()),
        (Code::ResourceExhausted, "TOO_MANY_STREAMS")
    );
    streams.pop();
    until(async || health.clone().watch(HealthCheckRequest::default()).await.is_ok()).await;
    // Only single answers: not limited.
    health.check(HealthCheckRequest::default()).await.unwrap();

    let channel = world.channel_to_people(Some(&world.admin())).await;
    let mut client = reflection::server_reflection_client::ServerReflectionClient::new(channel);
    let ask = reflection::ServerReflectionRequest {
        message_request: Some(
            reflection::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
        ..Default::default()
    };
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(ask).await.unwrap();
    let asked = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut answers = client.server_reflection_info(asked).await.unwrap().into_inner();
    answers.message().await.unwrap();
    let stopping = tokio::spawn(async move {
        world.stop().await;
        world
    });
    let ended = tokio::time::timeout(SOON, answers.message()).await.unwrap();
    assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
    stopping.await.unwrap();
}

#[tokio::test]
async fn a_machine_has_one_connection_and_those_it_leaves_are_closed() {
    let world = World::begin().await;
    let host = Host::enrol(&world, "web-1").await;
    let older = Link::connect(host.clone(), &world).await.unwrap();
    assert_eq!(established(world.agents()), 1);
    let newer = Link::connect(host, &world).await.unwrap();
    until(async || established(world.agents()) == 1).await;
    drop((older, newer));
}

/// How many connections to an address this host has.
fn established(address: SocketAddr) -> usize {
    let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let to_it = format!(":{:04X}", address.port());
    let sockets = sockets
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    // The server's side of them: its address first, and the state `established`.
    sockets
        .filter(|fields| fields[1].ends_with(&to_it) && fields[3] == "01")
        .count()
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap_or_default();
        drop(self.0.wait());
    }
}

impl Running {
    fn limit_files(&self, most: &str) {
        let pid = self.0.id().to_string();
        let set = Command::new("prlimit")
            .args(["--pid", &pid, &format!("--nofile={most}:")])
            .status();
        assert!(set.unwrap().success());
    }

    fn processor_time(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

#[tokio::test]
async fn running_out_of_descriptors_neither_ends_the_server_nor_keeps_it_busy() {
    let mut world = World::begin().await;
    world.stop().await;
    let config = world.directory.path().join("server.toml");
    let state = world.config.state.display();
    let text = format!("state = '{state}'\nlisten = '127.0.0.1:0'\nlisten_agents = '127.0.0.1:0'\n");
    std::fs::write(&config, text).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_nightlatch-server"))
        .args(["--config", config.to_str().unwrap(), "run"])
        .env_remove("RUST_LOG")
        .env_remove("NOTIFY_SOCKET")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let running = Running(child);
    let (sender, mut lines) = tokio::sync::mpsc::channel(1000);
    std::thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            drop(sender.blocking_send(line));
        }
    });
    let ready = loop {
        let line = tokio::time::timeout(SOON, lines.recv()).await.unwrap().unwrap();
        if line.contains("ready") {
            break line;
        }
    };
    let (_, rest) = ready.split_once("listen=").unwrap();
    let people: SocketAddr = rest.split_whitespace().next().unwrap().parse().unwrap();
    running.limit_files("30");
    let before = running.processor_time();
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(TcpStream::connect(people).await.unwrap());
    }
    let told = loop {
        let line = tokio::time::timeout(SOON, lines.recv()).await.unwrap().unwrap();
        if line.contains("WARN") {
            break line;
        }
    };
    assert!(told.contains("Too many open files"), "{told}");
    // Long enough for a loop that doesn't wait to be seen.
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let spent = running.processor_time() - before;
    assert!(spent < 50, "{spent} ticks");
    assert!(lines.try_recv().is_err(), "it is told once");
    running.limit_files("1000");
    drop(held);
    let mut admin = world.client_at(people, &world.admin()).await;
    admin
        .machines
        .list_machines(pb::ListMachinesRequest::default())
        .await
        .unwrap();
}
