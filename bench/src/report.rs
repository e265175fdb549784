//! The figures as a Markdown table.

use crate::measure::Measured;

pub(crate) fn print(measured: &Measured) {
    println!("| what | n | min | p50 | p95 | max |");
    println!("|---|---|---|---|---|---|");
    row(
        "request → first connect, whole command (ms)",
        &measured.first_connect,
    );
    row(
        "`nft add element` spawned by hand → first connect (ms)",
        &measured.by_hand,
    );
    row(
        "end, agent alive: first refused − end of grant (ms)",
        &measured.end_agent_alive,
    );
    row(
        "end, agent killed: first refused − end of grant (ms)",
        &measured.end_agent_dead,
    );
    println!();
    println!("| resident, idle | MiB |");
    println!("|---|---|");
    println!("| agent | {:.1} |", measured.agent_resident_kib as f64 / 1024.0);
    println!("| server | {:.1} |", measured.server_resident_kib as f64 / 1024.0);
    let ratio = quantile(&measured.first_connect, 0.5) / quantile(&measured.by_hand, 0.5);
    println!();
    println!("Request → first connect is {ratio:.1} × the spawned `nft` of the same run (p50).");
}

fn row(name: &str, values: &[f64]) {
    let [min, p50, p95, max] = [0.0, 0.5, 0.95, 1.0].map(|share| quantile(values, share));
    println!(
        "| {name} | {} | {min:.1} | {p50:.1} | {p95:.1} | {max:.1} |",
        values.len()
    );
}

/// The nearest-rank quantile.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_nearest_rank() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(
            [0.0, 0.5, 0.95, 1.0].map(|share| quantile(&values, share)),
            [1.0, 2.0, 4.0, 4.0]
        );
    }
}
