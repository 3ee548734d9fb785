package dev.walcast;

import java.util.List;
import walcast.v1.Walcast;

/**
 * Which rows go into an open stream, and how fast.
 *
 * @param tables globs over {@code schema.table}; none is all that the subscription has
 * @param where a predicate over columns; empty is all rows. {@link Where} quotes for you
 * @param maxRowsPerSecond bound on the load on the source; 0 is unlimited
 */
public record Backfill(List<String> tables, String where, int maxRowsPerSecond) {
    /** Copies the list. */
    public Backfill {
        tables = List.copyOf(tables);
    }

    /**
     * All rows of tables, as fast as they can be read.
     *
     * @param globs over {@code schema.table}; none is all that the subscription has
     * @return of these tables
     */
    public static Backfill of(String... globs) {
        return new Backfill(List.of(globs), "", 0);
    }

    /**
     * Only some rows.
     *
     * @param predicate whose toString is the predicate
     * @return the same with this predicate
     */
    public Backfill where(Object predicate) {
        return new Backfill(tables, predicate.toString(), maxRowsPerSecond);
    }

    /**
     * No faster than this.
     *
     * @param rows per second; 0 is unlimited
     * @return the same with this bound
     */
    public Backfill maxRowsPerSecond(int rows) {
        return new Backfill(tables, where, rows);
    }

    Walcast.BackfillRequest request(String subscriber) {
        return Walcast.BackfillRequest.newBuilder()
                .setSubscriber(subscriber)
                .setAction(Walcast.BackfillAction.BACKFILL_ACTION_START)
                .setFilter(Walcast.Filter.newBuilder().addAllTables(tables).setWhere(where))
                .setOptions(Walcast.SnapshotOptions.newBuilder().setMaxRowsPerSecond(maxRowsPerSecond))
                .build();
    }
}
