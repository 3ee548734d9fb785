//! Ranges of a table's pages: what one connection reads at a time, and with a limit of speed what one statement reads.

/// Pages of one range: 32 MiB of the usual 8 KiB.
const RANGE: i64 = 4096;
/// Pages of a statement that is to read a number of rows: at first, and at most, however few rows are found.
const FIRST: i64 = 8;
const MOST: i64 = 64;
/// Rows of a page of the usual 8 KiB at most: each takes a line pointer and a [tuple
/// header](https://www.postgresql.org/docs/current/storage-page-layout.html), 28 bytes (`MaxHeapTuplesPerPage`).
const PAGE_ROWS: i64 = 291;

/// A ctid: a row's line pointer on its page, from 1 on; 0 is in front of all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    page: i64,
    row: i64,
}

impl Place {
    fn page(page: i64) -> Self {
        Place { page, row: 0 }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "'({},{})'", self.page, self.row)
    }
}

/// Pages from `from`, exclusive of `to`; `None`: to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pages {
    from: Place,
    to: Option<Place>,
    /// How many there were when they were counted; one that was begun counts.
    count: i64,
}

impl Pages {
    /// A condition for the rows on them, if it is one.
    pub fn condition(self) -> Option<String> {
        let from = (self.from > Place::page(0)).then(|| format!("ctid >= {}", self.from));
        let to = self.to.map(|to| format!("ctid < {to}"));
        let both: Vec<String> = from.into_iter().chain(to).collect();
        (!both.is_empty()).then(|| both.join(" AND "))
    }

    /// Whether a page ends with them.
    fn ends_a_page(self) -> bool {
        self.to.is_none_or(|to| to.row == 0)
    }
}

/// The ranges of a table of so many pages.
pub(super) fn ranges(pages: i64) -> impl Iterator<Item = Pages> {
    let count = (pages / RANGE).max(1);
    (0..count).map(move |number| {
        let (from, last) = (number * RANGE, number + 1 == count);
        let to = (!last).then_some(from + RANGE);
        let count = to.unwrap_or(pages) - from;
        Pages { from: Place::page(from), to: to.map(Place::page), count }
    })
}

/// How many pages have about the number of rows that a statement is to read, and never more than a second's: what comes at once
/// is followed by a pause of its length, so that a page of narrow rows under a low limit is cut as well.
#[derive(Debug)]
pub(super) struct Cut {
    rows: Option<usize>,
    /// Pages of a statement, at most.
    most: i64,
    pages: i64,
    /// Under a limit lower than what a page may hold: that. A page that follows one with more than a second's rows is cut.
    second: Option<usize>,
    is_dense: bool,
    /// Rows of the page that was begun.
    begun: usize,
}

impl Cut {
    /// `rows`: of a statement; `None`: all of a range.
    pub fn new(rows: Option<usize>, rows_per_second: u32) -> Self {
        let most = (i64::from(rows_per_second) / PAGE_ROWS).clamp(1, MOST);
        let second = (i64::from(rows_per_second) < PAGE_ROWS).then_some(rows_per_second as usize);
        Cut { rows, most, pages: FIRST.min(most), second, is_dense: second.is_some(), begun: 0 }
    }

    /// Takes the first piece off a range.
    pub fn first(&self, range: &mut Option<Pages>) -> Option<Pages> {
        let pages = range.take()?;
        let Some(rows) = self.rows else { return Some(pages) };
        let row = pages.from.row.max(1) + rows as i64;
        if self.is_dense && row <= PAGE_ROWS && pages.count > 0 {
            let to = Place { row, ..pages.from };
            *range = Some(Pages { from: to, ..pages });
            return Some(Pages { to: Some(to), count: 1, ..pages });
        }
        if pages.count <= self.pages {
            return Some(pages);
        }
        let to = Place::page(pages.from.page + self.pages);
        *range = Some(Pages { from: to, count: pages.count - self.pages, ..pages });
        Some(Pages { to: Some(to), count: self.pages, ..pages })
    }

    /// A piece had so many rows.
    pub fn learn(&mut self, piece: Pages, rows: usize) {
        let Some(wanted) = self.rows else { return };
        let Some(second) = self.second else {
            let fits = piece.count as f64 * wanted as f64 / rows.max(1) as f64;
            self.pages = (fits as i64).clamp(1, (self.pages * 2).min(self.most));
            return;
        };
        self.begun += rows;
        if piece.ends_a_page() {
            self.is_dense = self.begun > second;
            self.begun = 0;
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
        assert_eq!(pieces(&mut Cut::new(None, 0), range, 100), [range]);
    }

    #[test]
    fn pieces_cover_a_range_and_have_about_as_many_rows_as_they_should() {
        for (rows_per_page, pages) in [(50, 20), (1, 64), (0, 64), (5000, 1)] {
            let mut cut = Cut::new(Some(1000), 600_000);
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

    #[test]
    fn a_piece_has_at_most_a_seconds_rows_however_narrow_they_are() {
        let range = ranges(40).next().unwrap();
        for (rows_per_second, per_page) in
            [(1, 226), (25, 226), (200, 226), (290, 226), (400, 226), (3000, 291), (25, 8)]
        {
            let mut cut = Cut::new(super::super::pacer::Pacer::new(rows_per_second).piece(), rows_per_second);
            let (mut left, mut from, mut total) = (Some(range), range.from, 0);
            while let Some(piece) = cut.first(&mut left) {
                assert_eq!(piece.from, from, "nothing is left out");
                from = piece.to.unwrap_or(Place::page(range.count));
                let place = |at: Place| at.page * per_page + (at.row - 1).clamp(0, per_page);
                let rows = place(from) - place(piece.from);
                assert!(rows <= i64::from(rows_per_second), "{rows} at once, {rows_per_second} rows/s: {piece:?}");
                cut.learn(piece, rows as usize);
                total += rows;
            }
            assert_eq!((total, from), (range.count * per_page, Place::page(range.count)));
        }
        assert_eq!(
            Pages { from: Place { page: 3, row: 26 }, to: Some(Place::page(4)), count: 1 }.condition(),
            some("ctid >= '(3,26)' AND ctid < '(4,0)'")
        );
    }
}
