package dev.walcast;

/**
 * A logical message, from pg_logical_emit_message.
 *
 * @param prefix chosen by its sender
 * @param content any bytes
 * @param ordinal number in its transaction, from 1; 0 outside a transaction
 * @param lsn end of its WAL record, {@code X/Y}
 */
public record Message(String prefix, byte[] content, long ordinal, String lsn) {}
