//! The words of the domain: positions, lineages, transactions, relations, rows. Plain data; knows neither
//! protobuf nor PostgreSQL's wire format, neither files nor sockets.

mod literal;
mod position;
mod relation;
mod row;
mod transaction;
mod visibility;

pub use literal::{Printed, Spelled};
pub use position::{Lineage, LineageId, ParseLineageError, Position};
pub use relation::{Column, Described, Relation, RelationId, ReplicaIdentity};
pub use row::{Datum, OldImage, RowAccess, Value};
pub use transaction::{Operation, Provenance, Transaction};
pub use visibility::{ParseVisibilityError, Visibility};
