//! Literals beside columns whose values compare in the form in which PostgreSQL prints them: which form that is only
//! PostgreSQL knows.

/// A literal for a column of a type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Spelled {
    /// `pg_type.oid`.
    pub type_oid: u32,
    /// `pg_attribute.atttypmod`, -1 for none.
    pub type_modifier: i32,
    /// As somebody wrote it, without quotes.
    pub text: String,
}

/// What PostgreSQL makes of a [`Spelled`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Printed {
    /// This, as a value of the type.
    As(String),
    /// It is no value of the type; why, in the server's language.
    Refused(String),
}
