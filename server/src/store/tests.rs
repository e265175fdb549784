use super::connection::Statement;
use super::*;

#[tokio::test]
async fn a_change_that_is_not_committed_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("a b%?#.db"), true).await.unwrap();
    let mut change = store.change().await.unwrap();
    let insert =
        "INSERT INTO tokens (secret_sha256, may_replace, created_at, expires_at) VALUES ('x', 0, 1, 2)";
    sql(insert).rows(change.connection()).await.unwrap();
    drop(change);
    let mut change = store.change().await.unwrap();
    sql(insert).rows(change.connection()).await.unwrap();
    change.commit().await.unwrap();
    store.close().await;
}

fn inserted(secret: &str) -> Statement {
    sql("INSERT INTO tokens (secret_sha256, may_replace, created_at, expires_at) VALUES ($1, 0, 1, 2)")
        .bind(secret)
}

async fn insert(change: &mut Change, secret: &str) -> Result<(), StoreError> {
    inserted(secret).rows(change.connection()).await?;
    Ok(())
}

#[tokio::test]
async fn what_is_only_written_makes_no_trip_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("nightlatch.db"), true)
        .await
        .unwrap();
    let mut change = store.change().await.unwrap();
    for secret in ["a", "b"] {
        inserted(secret).write(change.connection()).await.unwrap();
    }
    let rows = sql("SELECT secret_sha256 FROM tokens").rows(change.connection());
    assert_eq!(rows.await.unwrap().len(), 2);
    inserted("c").write(change.connection()).await.unwrap();
    change.commit().await.unwrap();
    let mut change = store.change().await.unwrap();
    assert_eq!(change.connection().trips, 2);
    drop(change);
    assert_eq!(tokens(&store).await, ["a", "b", "c"]);
}

#[tokio::test]
async fn what_can_not_be_written_fails_the_commit_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("nightlatch.db"), true)
        .await
        .unwrap();
    for _ in 0..3 {
        let mut change = store.change().await.unwrap();
        for secret in ["a", "a"] {
            inserted(secret).write(change.connection()).await.unwrap();
        }
        change.commit().await.unwrap_err();
    }
    assert!(tokens(&store).await.is_empty());
    let mut change = store.change().await.unwrap();
    inserted("a").write(change.connection()).await.unwrap();
    change.commit().await.unwrap();
    assert_eq!(tokens(&store).await, ["a"]);
}

async fn tokens(store: &Store) -> Vec<String> {
    let rows = sql("SELECT secret_sha256 FROM tokens ORDER BY secret_sha256");
    let rows = rows.rows(&mut store.read().await.unwrap()).await.unwrap();
    rows.iter()
        .map(|row| row::text(row, "secret_sha256").unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_changes_that_race_those_that_were_committed_hold_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("nightlatch.db"), true)
        .await
        .unwrap();
    let changes: Vec<_> = (0..200)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut change = store.change().await.unwrap();
                insert(&mut change, &format!("{number:03}")).await.unwrap();
                match number % 5 {
                    // Given up, after an error or without.
                    0 => insert(&mut change, &format!("{number:03}"))
                        .await
                        .unwrap_err()
                        .to_string(),
                    1 => String::new(),
                    _ => {
                        change.commit().await.unwrap();
                        // What is acknowledged can be read.
                        assert!(tokens(&store).await.contains(&format!("{number:03}")));
                        String::new()
                    }
                }
            })
        })
        .collect();
    for change in changes {
        change.await.unwrap();
    }
    let expected: Vec<String> = (0..200)
        .filter(|number| number % 5 > 1)
        .map(|number| format!("{number:03}"))
        .collect();
    assert_eq!(tokens(&store).await, expected);
    store.close().await;
    assert!(matches!(store.change().await, Err(StoreError::Closed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_only_what_is_there_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("nightlatch.db"), true)
        .await
        .unwrap();
    let mut change = store.change().await.unwrap();
    let pages = sql("PRAGMA page_count").one(change.connection()).await.unwrap();
    let pages = row::number(&pages, "page_count").unwrap() + 2;
    let most = format!("PRAGMA max_page_count = {pages}");
    sql(most).rows(change.connection()).await.unwrap();
    drop(change);
    let changes: Vec<_> = (0..40)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move {
                let long = format!("{number:03}").repeat(100);
                let mut change = store.change().await.ok()?;
                insert(&mut change, &long).await.ok()?;
                change.commit().await.ok()?;
                Some(long)
            })
        })
        .collect();
    let mut acknowledged = Vec::new();
    for change in changes {
        acknowledged.extend(change.await.unwrap());
    }
    acknowledged.sort();
    assert!(!acknowledged.is_empty() && acknowledged.len() < 40);
    assert_eq!(tokens(&store).await, acknowledged);
}

#[tokio::test]
async fn a_missing_database_is_not_made_up() {
    let dir = tempfile::tempdir().unwrap();
    assert!(
        Store::open(&dir.path().join("nightlatch.db"), false)
            .await
            .is_err()
    );
}
