package dev.walcast;

import java.time.Instant;

/** Where a subscription begins. A named subscriber begins there only if it has no checkpoint. */
public sealed interface Start {

    /** The oldest change that the journal has. */
    record Earliest() implements Start {}

    /** Whatever commits from now on. */
    record Latest() implements Start {}

    /**
     * Behind a position that a hub sent (exclusive).
     *
     * @param position that position
     */
    record After(Position position) implements Start {}

    /**
     * Behind an LSN of the current lineage (exclusive).
     *
     * @param lsn {@code X/Y}
     */
    record AfterLsn(String lsn) implements Start {
        /**
         * Checks the LSN.
         *
         * @param lsn {@code X/Y}
         */
        public AfterLsn {
            Position.lsnToLong(lsn);
        }
    }

    /**
     * The first block that holds a commit at or after a time (inclusive); somewhat earlier commits may come too.
     *
     * @param time by the source's clock
     */
    record Since(Instant time) implements Start {}

    /**
     * The rows that are there, then the changes that follow them without a gap.
     *
     * @param mode how it is read
     * @param maxRowsPerSecond bound on the load on the source; 0 is unlimited
     */
    record Snapshot(SnapshotMode mode, int maxRowsPerSecond) implements Start {}

    /**
     * The oldest change that the journal has.
     *
     * @return the start
     */
    static Start earliest() {
        return new Earliest();
    }

    /**
     * Whatever commits from now on.
     *
     * @return the start
     */
    static Start latest() {
        return new Latest();
    }

    /**
     * Behind a position (exclusive).
     *
     * @param position that a hub sent
     * @return the start
     */
    static Start after(Position position) {
        return new After(position);
    }

    /**
     * The first block that holds a commit at or after a time.
     *
     * @param time by the source's clock
     * @return the start
     */
    static Start since(Instant time) {
        return new Since(time);
    }

    /**
     * The rows that are there, read as the hub chooses, then changes.
     *
     * @return the start
     */
    static Start snapshot() {
        return new Snapshot(SnapshotMode.HUB_CHOOSES, 0);
    }

    /**
     * From text: "earliest", "latest", "snapshot", an LSN {@code X/Y}, or a position as {@link Position#toString} gives it.
     *
     * @param text one of these
     * @return the start
     * @throws IllegalArgumentException if it is none of them
     */
    static Start parse(String text) {
        return switch (text) {
            case "earliest" -> earliest();
            case "latest" -> latest();
            case "snapshot" -> snapshot();
            default -> text.indexOf(':') >= 0 ? new After(Position.parse(text)) : new AfterLsn(text);
        };
    }
}
