package dev.walcast;

/** Which columns of the old row an update or delete carries. */
public enum ReplicaIdentity {
    /** The primary key. */
    DEFAULT,
    /** Every column. */
    FULL,
    /** The columns of a chosen unique index. */
    INDEX,
    /** None. */
    NOTHING
}
