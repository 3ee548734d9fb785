//! Ranges of a table's pages: what one connection reads at a time, and with a limit of speed what one statement reads.

/// Pages of one range: 32 MiB of the usual 8 KiB.
const RANGE: i64 = 4096;
/// Pages of a statement that is to read a number of rows: at first, and at most, however few rows are found.
const FIRST: i64 = 8;
const MOST: i64 = 64;

/// Pages from `from`, exclusive of `to`; `None`: to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pages {
    from: i64,
    to: Option<i64>,
    /// How many there were when they were counted.
    count: i64,
}

impl Pages {
    /// A condition for the rows on them, if it is one.
    pub fn condition(self) -> Option<String> {
        let from = (self.from > 0).then(|| format!("ctid >= '({},0)'", self.from));
        let to = self.to.map(|to| format!("ctid < '({to},0)'"));
        let both: Vec<String> = from.into_iter().chain(to).collect();
        (!both.is_empty()).then(|| both.join(" AND "))
    }
}

/// The ranges of a table of so many pages.
pub(super) fn ranges(pages: i64) -> impl Iterator<Item = Pages> {
    let count = (pages / RANGE).max(1);
    (0..count).map(move |number| {
        let (from, last) = (number * RANGE, number + 1 == count);
        let to = (!last).then_some(from + RANGE);
        Pages { from, to, count: to.unwrap_or(pages) - from }
    })
}

/// How many pages have about the number of rows that a statement is to read.
#[derive(Debug)]
pub(super) struct Cut {
    rows: Option<usize>,
    pages: i64,
}

impl Cut {
    /// `rows`: of a statement; `None`: all of a range.
    pub fn new(rows: Option<usize>) -> Self {
        Cut { rows, pages: FIRST }
    }

    /// Takes the first piece off a range.
    pub fn first(&self, range: &mut Option<Pages>) -> Option<Pages> {
        let pages = range.take()?;
        if self.rows.is_none() || pages.count <= self.pages {
            return Some(pages);
        }
        let to = pages.from + self.pages;
        *range = Some(Pages { from: to, count: pages.count - self.pages, ..pages });
        Some(Pages { to: Some(to), count: self.pages, ..pages })
    }

    /// A piece had so many rows.
    pub fn learn(&mut self, piece: Pages, rows: usize) {
        if let Some(wanted) = self.rows {
            let fits = piece.count as f64 * wanted as f64 / rows.max(1) as f64;
            self.pages = (fits as i64).clamp(1, (self.pages * 2).min(MOST));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conditions(ranges: impl IntoIterator<Item = Pages>) -> Vec<Option<String>> {
        ranges.into_iter().map(Pages::condition).collect()
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn ranges_cover_every_page_once() {
        assert_eq!(conditions(ranges(0)), [None]);
        assert_eq!(conditions(ranges(RANGE * 2 - 1)), [None]);
        assert_eq!(
            conditions(ranges(RANGE * 3 + 5)),
            [some("ctid < '(4096,0)'"), some("ctid >= '(4096,0)' AND ctid < '(8192,0)'"), some("ctid >= '(8192,0)'")]
        );
    }

    fn pieces(cut: &mut Cut, range: Pages, rows_per_page: usize) -> Vec<Pages> {
        let (mut left, mut pieces) = (Some(range), Vec::new());
        while let Some(piece) = cut.first(&mut left) {
            cut.learn(piece, piece.count as usize * rows_per_page);
            pieces.push(piece);
        }
        pieces
    }

    #[test]
    fn without_a_limit_a_range_is_one_piece() {
        let range = ranges(1000).next().unwrap();
        assert_eq!(pieces(&mut Cut::new(None), range, 100), [range]);
    }

    #[test]
    fn pieces_cover_a_range_and_have_about_as_many_rows_as_they_should() {
        for (rows_per_page, pages) in [(50, 20), (1, 64), (0, 64), (5000, 1)] {
            let mut cut = Cut::new(Some(1000));
            for range in ranges(RANGE * 2 + 77) {
                let pieces = pieces(&mut cut, range, rows_per_page);
                assert_eq!(pieces[0].from, range.from);
                assert!(pieces.windows(2).all(|two| two[0].to == Some(two[1].from)));
                assert_eq!(pieces.last().unwrap().to, range.to);
                assert_eq!(pieces.iter().map(|piece| piece.count).sum::<i64>(), range.count);
                assert!(pieces.iter().all(|piece| piece.count <= MOST));
            }
            assert_eq!(cut.pages, pages, "{rows_per_page}");
        }
    }
}
