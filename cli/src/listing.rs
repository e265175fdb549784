//! Lists, page by page: whole for programs, for people up to a number that they can read.

use clap::Args;
use serde::Serialize;

use crate::failure::Failure;
use crate::output::{self, Output};

/// As many rows as a person looks through.
const MOST_ROWS: usize = 100;

/// How much of a list is wanted.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Extent {
    /// At most so many. Without it tables end after 100, and JSON has all.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: Option<u32>,
    /// All of them.
    #[arg(long, conflicts_with = "limit")]
    all: bool,
}

impl Extent {
    fn most(self, output: &Output) -> usize {
        match self.limit {
            Some(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
            None if self.all || output.is_json() => usize::MAX,
            None => MOST_ROWS,
        }
    }
}

/// A part of a list, and how to ask for the next.
#[derive(Debug)]
pub(crate) struct Page<T> {
    pub(crate) items: Vec<T>,
    pub(crate) next: Option<String>,
}

impl<T> Page<T> {
    /// As it comes: an empty token means that this is the last.
    pub(crate) fn of<P: Into<T>>(items: Vec<P>, next: String) -> Self {
        Self {
            items: items.into_iter().map(Into::into).collect(),
            next: Some(next).filter(|token| !token.is_empty()),
        }
    }
}

/// A list, and whether it was cut off at the number asked for.
#[derive(Debug)]
pub(crate) struct Listed<T> {
    pub(crate) items: Vec<T>,
    pub(crate) is_cut: bool,
}

/// Fetches page after page, until there are `most` entries or no more.
pub(crate) async fn collected<T>(
    most: usize,
    fetch: impl AsyncFn(Option<String>) -> Result<Page<T>, Failure>,
) -> Result<Listed<T>, Failure> {
    let mut all = Vec::new();
    let is_cut = walk(most, fetch, |items| {
        all.extend(items);
        Ok(true)
    });
    Ok(Listed {
        is_cut: is_cut.await?,
        items: all,
    })
}

/// Writes a list, newest first, for whoever reads it.
pub(crate) async fn show<T: Serialize>(
    member: &'static str,
    extent: Extent,
    output: &Output,
    fetch: impl AsyncFn(Option<String>) -> Result<Page<T>, Failure>,
    table: impl FnOnce(&[T], &Output) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let most = extent.most(output);
    let is_cut = if output.is_json() {
        stream(member, most, output, fetch).await?
    } else {
        let Listed { items, is_cut } = collected(most, fetch).await?;
        table(&items, output)?;
        is_cut
    };
    if is_cut && !output.is_closed() {
        output::hint(format!(
            "only the newest {most} are shown: --limit N shows more, --all shows all"
        ));
    }
    Ok(())
}

/// Writes JSON as the pages come: a whole list need not fit into memory. Gives whether it was cut off.
pub(crate) async fn stream<T: Serialize>(
    member: &'static str,
    most: usize,
    output: &Output,
    fetch: impl AsyncFn(Option<String>) -> Result<Page<T>, Failure>,
) -> Result<bool, Failure> {
    let mut list = JsonList::new(member, output);
    let walked = walk(most, fetch, |items| {
        list.write(&items)?;
        // A reader who left, as `head` does, needs no more pages.
        Ok(!output.is_closed())
    });
    match walked.await {
        Ok(is_cut) => list.end(is_cut).map(|()| is_cut),
        Err(failure) => {
            list.break_off(&failure)?;
            Err(failure)
        }
    }
}

/// Takes pages until `most` entries, no more pages, or a `take` that wants none. Gives whether `most` cut it off.
async fn walk<T>(
    most: usize,
    fetch: impl AsyncFn(Option<String>) -> Result<Page<T>, Failure>,
    mut take: impl FnMut(Vec<T>) -> Result<bool, Failure>,
) -> Result<bool, Failure> {
    let (mut left, mut token) = (most, None);
    loop {
        let Page { mut items, next } = fetch(token).await?;
        let is_over = items.len() > left;
        items.truncate(left);
        left = left.saturating_sub(items.len());
        if !take(items)? {
            return Ok(false);
        }
        if left == 0 || next.is_none() {
            return Ok(is_over || next.is_some());
        }
        token = next;
    }
}

/// `{"grants":[…],"is_cut":false}`, entry by entry.
pub(crate) struct JsonList<'o> {
    member: &'static str,
    output: &'o Output,
    is_first: bool,
}

impl<'o> JsonList<'o> {
    pub(crate) const fn new(member: &'static str, output: &'o Output) -> Self {
        Self {
            member,
            output,
            is_first: true,
        }
    }

    pub(crate) fn write(&mut self, items: &[impl Serialize]) -> Result<(), Failure> {
        for item in items {
            let json = serde_json::to_string(item).map_err(|error| Failure::Write(error.into()))?;
            let before = if self.is_first {
                format!("{{\"{}\":[\n", self.member)
            } else {
                ",\n".to_string()
            };
            self.output.write(format!("{before}{json}").as_bytes())?;
            self.is_first = false;
        }
        Ok(())
    }

    /// What has begun is made whole, with the failure beside what came before it.
    fn break_off(&self, failure: &Failure) -> Result<(), Failure> {
        if self.is_first {
            return Ok(());
        }
        let json = serde_json::to_string(&failure.record()).map_err(|error| Failure::Write(error.into()))?;
        self.output.line(&format!("\n],\n\"error\":{json}}}"))
    }

    pub(crate) fn end(self, is_cut: bool) -> Result<(), Failure> {
        let before = if self.is_first {
            format!("{{\"{}\":[", self.member)
        } else {
            String::new()
        };
        self.output.line(&format!("{before}\n],\n\"is_cut\":{is_cut}}}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three pages: 0 to 2, 3 to 5, 6 and 7.
    async fn page(token: Option<String>) -> Result<Page<u32>, Failure> {
        let start = token.map_or(0, |token| token.parse().unwrap());
        let end = (start + 3).min(8);
        let next = if end < 8 { end.to_string() } else { String::new() };
        Ok(Page::of((start..end).collect::<Vec<u32>>(), next))
    }

    #[tokio::test]
    async fn a_list_is_cut_only_where_more_is_left() {
        for (most, found, is_cut) in [
            (1, 1, true),
            (3, 3, true),
            (4, 4, true),
            (7, 7, true),
            (8, 8, false),
            (9, 8, false),
            (usize::MAX, 8, false),
        ] {
            let listed = collected(most, page).await.unwrap();
            assert_eq!((listed.items.len(), listed.is_cut), (found, is_cut), "{most}");
        }
    }
}
