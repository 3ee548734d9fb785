package dev.walcast;

/** The value of a column that was not sent. Neither null nor equal to anything else. */
public enum Unchanged {
    /** A TOASTed value that the update did not touch and PostgreSQL did not send: it is what it was. */
    UNCHANGED
}
