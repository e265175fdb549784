//! Many rows in one statement, in few sizes, so that each size is prepared once.

const SIZES: [usize; 5] = [64, 8, 4, 2, 1];

/// Cuts rows into pieces of those sizes.
pub(super) fn chunks<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let size = SIZES.into_iter().find(|size| *size <= rows.len())?;
        let (some, rest) = rows.split_at(size);
        rows = rest;
        Some(some)
    })
}

/// `(?, ?), (?, ?)`
pub(super) fn values(rows: usize, columns: usize) -> String {
    let row = format!("({})", vec!["?"; columns].join(", "));
    vec![row.as_str(); rows].join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_rows_are_covered_in_order() {
        for count in [0, 1, 3, 63, 64, 200] {
            let rows: Vec<usize> = (0..count).collect();
            assert_eq!(chunks(&rows).collect::<Vec<_>>().concat(), rows);
        }
        assert_eq!(values(2, 2), "(?, ?), (?, ?)");
    }
}
