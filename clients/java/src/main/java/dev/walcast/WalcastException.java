package dev.walcast;

/** Base of everything that this library throws, wrong arguments aside. */
public class WalcastException extends RuntimeException {
    private static final long serialVersionUID = 1;

    WalcastException(String message) {
        super(message);
    }

    WalcastException(String message, Throwable cause) {
        super(message, cause);
    }

    /** The hub sent something that this version does not know. Skipping it would lose data, so the subscription ends. */
    public static final class Protocol extends WalcastException {
        private static final long serialVersionUID = 1;

        Protocol(String message) {
            super(message);
        }

        Protocol(String message, Throwable cause) {
            super(message, cause);
        }
    }

    /** The client or subscription was closed, or ended by an error, and cannot be used any more. */
    public static final class Closed extends WalcastException {
        private static final long serialVersionUID = 1;

        Closed(String message) {
            super(message);
        }
    }

    /** The call does not fit the subscription: acknowledging an anonymous one, for instance. */
    public static final class Misuse extends WalcastException {
        private static final long serialVersionUID = 1;

        Misuse(String message) {
            super(message);
        }
    }

    /** The thread was interrupted while it waited. Nothing is lost: iterate again. Its interrupt flag is set. */
    public static final class Interrupted extends WalcastException {
        private static final long serialVersionUID = 1;

        Interrupted() {
            super("interrupted while waiting");
        }
    }

    /** A transaction exceeds {@code maxTransactionBytes}. {@link Subscription#events} streams it without holding it. */
    public static final class TransactionTooLarge extends WalcastException {
        private static final long serialVersionUID = 1;

        TransactionTooLarge(String message) {
            super(message);
        }
    }

    /** The source failed over. Undo {@code event().retracted()}, then iterate the same subscription again. */
    public static final class TimelineChanged extends WalcastException {
        private static final long serialVersionUID = 1;
        private final transient Event.TimelineChanged event;

        TimelineChanged(Event.TimelineChanged event) {
            super("history forked at " + event.switchLsn() + ": lineage " + event.oldLineage() + " ended, "
                    + event.newLineage() + " goes on; " + event.retracted().size() + " transactions were taken back");
            this.event = event;
        }

        /**
         * What happened.
         *
         * @return with the transactions that were taken back
         */
        public Event.TimelineChanged event() {
            return event;
        }
    }

    /** Changes are missing by the hub's policy. Iterate again to go on behind {@code event().upTo()}. */
    public static final class Gap extends WalcastException {
        private static final long serialVersionUID = 1;
        private final transient Event.Gap event;

        Gap(Event.Gap event) {
            super("changes are missing from " + event.after().lsn() + " to "
                    + event.upTo().lsn() + ": " + event.reason());
            this.event = event;
        }

        /**
         * What is missing.
         *
         * @return the range
         */
        public Event.Gap event() {
            return event;
        }
    }

    /** A snapshot starts over: drop the rows that an earlier attempt delivered, then iterate again. */
    public static final class SnapshotRestarted extends WalcastException {
        private static final long serialVersionUID = 1;
        private final transient Event.SnapshotBegin event;

        SnapshotRestarted(Event.SnapshotBegin event) {
            super("snapshot " + event.snapshotId() + " starts over: drop the rows that it delivered before");
            this.event = event;
        }

        /**
         * Which one.
         *
         * @return the snapshot
         */
        public Event.SnapshotBegin event() {
            return event;
        }
    }
}
