//! The decoders under arbitrary bytes, for the fuzz target and for a test with random input.

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    segment::{FileHeader, Kind, RECORD_LEN, RECORDS, RecordHeader, Scanner, Slice, Step, record_size},
    tail::{get_lineage, get_relation, get_state, read_begin},
};
use crate::{model::Position, wire::block::Block};

/// Scans `file` as a segment and decodes what passes its checksums. Returns how many records did. Panics only on a
/// defect: a scanner that does not move on, or one that leaves the file.
pub fn check(file: &[u8]) -> usize {
    let salt = FileHeader::decode(file).map_or(0, |header| header.salt);
    let bytes = Bytes::copy_from_slice(file);
    let mut scanner = Scanner::new(Slice { base: 0, bytes }, salt, RECORDS, true);
    let mut at = RECORDS;
    let mut records = 0;
    loop {
        let step = scanner.step();
        match step {
            Err(error) => panic!("memory cannot fail: {error}"),
            Ok(Step::End { offset }) => {
                assert!(offset >= at);
                return records;
            }
            Ok(Step::Damage { from, to, .. }) => {
                assert!(from >= at && to > from && to <= file.len() as u64);
                at = to;
            }
            Ok(Step::Record { offset, header, payload }) => {
                assert!(offset >= at && offset + header.size() <= file.len() as u64);
                at = offset + header.size();
                records += 1;
                decode(&header, payload);
            }
        }
    }
}

fn decode(header: &RecordHeader, payload: Bytes) {
    match Kind::from_byte(header.kind) {
        Some(Kind::Block) => {
            if let Ok(block) = Block::decode(payload) {
                let _ = (block.index().is_ok(), read_begin(block.continued_begin()));
            }
        }
        Some(Kind::Relation) => drop(get_relation(&payload)),
        Some(Kind::Lineage) => drop(get_lineage(&payload)),
        Some(Kind::State) => drop(get_state(&payload)),
        Some(Kind::Mark | Kind::Recovered | Kind::Horizon) | None => {}
    }
}

/// A segment whose records pass their checksums and hold pieces of `data`, each preceded by kind and length.
pub fn seal(mut data: &[u8]) -> BytesMut {
    let salt = 5;
    let position = Position::default();
    let header =
        FileHeader { number: 1, first_block: 1, after: position, created: 0, salt, preamble: RECORDS, replay: false };
    let mut out = header.encode();
    while let [kind, low, high, rest @ ..] = data {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (payload, behind) = rest.split_at(len);
        data = behind;
        let record = RecordHeader {
            kind: kind % 7,
            repeated: false,
            len: len as u32,
            payload_crc: crc32c::crc32c(payload),
            block: 1,
            first: position,
            last: position,
            synced: 0,
            commit_time: 0,
        };
        let offset = out.len();
        out.put_bytes(0, RECORD_LEN);
        record.encode(salt, offset as u64, &mut out[offset..]);
        out.put_slice(payload);
        out.resize(offset + record_size(len as u64) as usize, 0);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_end_without_panic(
            mut data in prop::collection::vec(any::<u8>(), 0..2000),
            pieces in prop::collection::vec((any::<u8>(), 0..200usize), 0..10),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            check(&data);
            let mut sealed = Vec::new();
            for (kind, len) in pieces {
                let len = len.min(data.len());
                sealed.extend_from_slice(&[kind, len as u8, 0]);
                sealed.extend(data.drain(..len));
            }
            let mut file = seal(&sealed);
            let records = check(&file);
            prop_assert_eq!(records == 0, file.len() == RECORDS as usize);
            for (at, flip) in flips {
                let at = at.index(file.len());
                file[at] ^= flip;
            }
            prop_assert!(check(&file) <= records);
        }
    }
}
