package dev.walcast;

import walcast.v1.EventOuterClass;

/** How the rows of a snapshot are read. */
public enum SnapshotMode {
    /** As the hub chooses by the size of the tables. */
    HUB_CHOOSES(EventOuterClass.SnapshotMode.SNAPSHOT_MODE_UNSPECIFIED),
    /** All tables as of one point, in front of all changes. */
    CONSISTENT(EventOuterClass.SnapshotMode.SNAPSHOT_MODE_CONSISTENT),
    /** In chunks between changes, which go on meanwhile. */
    INCREMENTAL(EventOuterClass.SnapshotMode.SNAPSHOT_MODE_INCREMENTAL);

    private final EventOuterClass.SnapshotMode message;

    SnapshotMode(EventOuterClass.SnapshotMode message) {
        this.message = message;
    }

    EventOuterClass.SnapshotMode message() {
        return message;
    }
}
