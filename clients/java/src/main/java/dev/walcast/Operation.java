package dev.walcast;

import walcast.v1.EventOuterClass;

/** What happened to a row or a table. */
public enum Operation {
    /** A new row. */
    INSERT(EventOuterClass.Operation.OPERATION_INSERT),
    /** A changed row. */
    UPDATE(EventOuterClass.Operation.OPERATION_UPDATE),
    /** A removed row. */
    DELETE(EventOuterClass.Operation.OPERATION_DELETE),
    /** All rows of a table removed. */
    TRUNCATE(EventOuterClass.Operation.OPERATION_TRUNCATE),
    /** A row that was already there, from a snapshot. */
    READ(EventOuterClass.Operation.OPERATION_READ);

    private final EventOuterClass.Operation message;
    private final String text;

    Operation(EventOuterClass.Operation message) {
        this.message = message;
        this.text = name().toLowerCase(java.util.Locale.ROOT);
    }

    EventOuterClass.Operation message() {
        return message;
    }

    static Operation of(int number) {
        switch (number) {
            case EventOuterClass.Operation.OPERATION_INSERT_VALUE:
                return INSERT;
            case EventOuterClass.Operation.OPERATION_UPDATE_VALUE:
                return UPDATE;
            case EventOuterClass.Operation.OPERATION_DELETE_VALUE:
                return DELETE;
            case EventOuterClass.Operation.OPERATION_READ_VALUE:
                return READ;
            default:
                throw new WalcastException.Protocol(
                        "operation " + number + " of a change is not known to this version");
        }
    }

    /** "insert", "update", ... */
    @Override
    public String toString() {
        return text;
    }
}
