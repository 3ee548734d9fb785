package dev.walcast;

import com.google.protobuf.ByteString;
import java.util.HexFormat;
import java.util.Objects;
import walcast.v1.EventOuterClass;

/**
 * A resume point: everything up to and including it is done. Store it whole; {@link #toString} and {@link #parse} are
 * inverse.
 *
 * @param lsn end LSN of the commit record, {@code X/Y}
 * @param lineage one unbroken course of history, 16 hexadecimal digits; equal or not, never compared for order
 * @param sequence 0 for transactions from the slot
 * @param snapshot opaque progress of running snapshots, in hexadecimal; empty without
 */
public record Position(String lsn, String lineage, long sequence, String snapshot) {

    /**
     * All parts are given.
     *
     * @param lsn not null
     * @param lineage not null
     * @param sequence from 0
     * @param snapshot not null
     */
    public Position {
        Objects.requireNonNull(lsn);
        Objects.requireNonNull(lineage);
        Objects.requireNonNull(snapshot);
    }

    /**
     * A position from the slot, without a snapshot.
     *
     * @param lsn {@code X/Y}
     * @param lineage 16 hexadecimal digits
     */
    public Position(String lsn, String lineage) {
        this(lsn, lineage, 0, "");
    }

    /**
     * The inverse of {@link #toString}.
     *
     * @param text as {@code toString} gave it
     * @return the position
     * @throws IllegalArgumentException if it is none
     */
    public static Position parse(String text) {
        String[] parts = text.split(":", -1);
        if (parts.length != 4) {
            throw new IllegalArgumentException("not a position: " + text);
        }
        lsnToLong(parts[1]);
        HexFormat.of().parseHex(parts[3]);
        return new Position(parts[1], parts[0], Long.parseLong(parts[2]), parts[3]);
    }

    /**
     * An LSN as a number of bytes, unsigned.
     *
     * @param lsn {@code X/Y}
     * @return the number; compare it with {@link Long#compareUnsigned}
     * @throws IllegalArgumentException if it is not an LSN
     */
    public static long lsnToLong(String lsn) {
        int slash = lsn.indexOf('/');
        return word(lsn, 0, slash) << 32 | word(lsn, slash + 1, lsn.length());
    }

    private static long word(String lsn, int from, int to) {
        if (to - from < 1 || to - from > 8) {
            throw new IllegalArgumentException("not an LSN: " + lsn);
        }
        return HexFormat.fromHexDigitsToLong(lsn, from, to);
    }

    /**
     * Whether this position is on the same lineage and at or behind the other.
     *
     * @param other another position
     * @return false if they are on different lineages
     */
    public boolean reaches(Position other) {
        if (!lineage.equals(other.lineage)) {
            return false;
        }
        int order = Long.compareUnsigned(lsnToLong(lsn), lsnToLong(other.lsn));
        return order > 0 || (order == 0 && sequence >= other.sequence);
    }

    /** {@code LINEAGE:X/Y:SEQUENCE:SNAPSHOT}. */
    @Override
    public String toString() {
        return lineage + ":" + lsn + ":" + sequence + ":" + snapshot;
    }

    /** As a hub sent it; what cannot be resumed from is an error. */
    static Position of(EventOuterClass.Position message) {
        try {
            lsnToLong(message.getLsn());
        } catch (IllegalArgumentException error) {
            throw new WalcastException.Protocol(
                    "the hub sent a position whose LSN is '" + message.getLsn() + "'", error);
        }
        String snapshot = message.getSnapshot().isEmpty()
                ? ""
                : HexFormat.of().formatHex(message.getSnapshot().toByteArray());
        return new Position(
                message.getLsn(), message.getLineage(), Integer.toUnsignedLong(message.getSequence()), snapshot);
    }

    EventOuterClass.Position message() {
        return EventOuterClass.Position.newBuilder()
                .setLsn(lsn)
                .setLineage(lineage)
                .setSequence((int) sequence)
                .setSnapshot(ByteString.copyFrom(HexFormat.of().parseHex(snapshot)))
                .build();
    }
}
