package dev.walcast;

import java.time.Duration;
import java.util.Arrays;
import java.util.Collection;
import java.util.List;
import java.util.Objects;
import java.util.function.BiConsumer;
import java.util.function.Consumer;

/** What to subscribe to and how. Nothing said is everything, anonymously, from now on. */
public final class SubscriptionBuilder {
    private final Options options = new Options();
    private final Client client;

    SubscriptionBuilder(Client client, int maxMessageBytes) {
        this.client = client;
        this.options.maxMessageBytes = maxMessageBytes;
    }

    /**
     * Globs over {@code schema.table}; none is all. A name without wildcards must be published.
     *
     * @param globs to add
     * @return this
     */
    public SubscriptionBuilder tables(String... globs) {
        options.filter.addAllTables(Arrays.asList(globs));
        return this;
    }

    /**
     * Globs over {@code schema.table} that are left out, whatever {@link #tables} says.
     *
     * @param globs to add
     * @return this
     */
    public SubscriptionBuilder excludeTables(String... globs) {
        options.filter.addAllExcludeTables(Arrays.asList(globs));
        return this;
    }

    /**
     * Operations; none is all.
     *
     * @param operations to add
     * @return this
     */
    public SubscriptionBuilder operations(Operation... operations) {
        options.filter.addAllOperations(Messages.operations(Arrays.asList(operations)));
        return this;
    }

    /**
     * Globs over {@code schema.table.column}; none is all. Columns of the replica identity always come.
     *
     * @param globs to add
     * @return this
     */
    public SubscriptionBuilder columns(String... globs) {
        options.filter.addAllColumns(Arrays.asList(globs));
        return this;
    }

    /**
     * A predicate over columns; {@link Where} quotes for you.
     *
     * @param predicate whose toString is the predicate
     * @return this
     */
    public SubscriptionBuilder where(Object predicate) {
        options.filter.setWhere(predicate.toString());
        return this;
    }

    /**
     * Globs over prefixes of logical messages.
     *
     * @param prefixes to add
     * @return this
     */
    public SubscriptionBuilder messages(String... prefixes) {
        options.filter.addAllMessagePrefixes(Arrays.asList(prefixes));
        return this;
    }

    /**
     * Names of replication origins; none is all, and "" names the source itself.
     *
     * @param origins to add
     * @return this
     */
    public SubscriptionBuilder origins(String... origins) {
        options.filter.addAllOrigins(Arrays.asList(origins));
        return this;
    }

    /**
     * Other columns, predicates and operations for some tables.
     *
     * @param rules to add; the first that matches holds
     * @return this
     */
    public SubscriptionBuilder rules(Rule... rules) {
        List<Rule> list = Arrays.asList(rules);
        options.filter.addAllRules(list.stream().map(Messages::rule).toList());
        return this;
    }

    /**
     * A durable name, which makes the hub keep its position.
     *
     * @param name 1 to 128 of [a-zA-Z0-9._-]
     * @return this
     */
    public SubscriptionBuilder subscriber(String name) {
        options.subscriber = Objects.requireNonNull(name);
        return this;
    }

    /**
     * Where to begin; a named subscriber begins there only if it has no checkpoint. The default is latest for an anonymous
     * one, and for a named one {@link HubException.CheckpointMissing}.
     *
     * @param start where
     * @return this
     */
    public SubscriptionBuilder start(Start start) {
        options.start = start;
        return this;
    }

    /**
     * Whether a transaction is acknowledged when the next one is asked for, that is after the loop's body succeeded.
     *
     * @param automatically default true
     * @return this
     */
    public SubscriptionBuilder autoAck(boolean automatically) {
        options.autoAck = automatically;
        return this;
    }

    /**
     * End at the position that the source had when the stream was opened.
     *
     * @return this
     */
    public SubscriptionBuilder stopAtTail() {
        options.stopAtTail = true;
        return this;
    }

    /**
     * Leave json and jsonb as text.
     *
     * @return this
     */
    public SubscriptionBuilder jsonAsText() {
        options.jsonAsText = true;
        return this;
    }

    /**
     * Decodes a type's text in another way: an enum for instance.
     *
     * @param typeName as in {@link Column#typeName}
     * @param decoder for its text
     * @return this
     */
    public SubscriptionBuilder type(String typeName, Decoder decoder) {
        options.types.put(typeName, decoder);
        return this;
    }

    /**
     * What the hub may send ahead of you.
     *
     * @param events default 100,000
     * @param bytes default 8 MiB
     * @return this
     */
    public SubscriptionBuilder window(long events, long bytes) {
        if (events < 1 || bytes < 1) {
            throw new IllegalArgumentException("a window is at least 1");
        }
        options.windowEvents = events;
        options.windowBytes = bytes;
        return this;
    }

    /**
     * The largest transaction that is gathered in memory, as it comes over the wire.
     *
     * @param bytes default 1 GiB
     * @return this
     */
    public SubscriptionBuilder maxTransactionBytes(long bytes) {
        options.maxTransactionBytes = bytes;
        return this;
    }

    /**
     * Time between two progress events.
     *
     * @param interval default 1 s while positions move, 10 s when silent
     * @return this
     */
    public SubscriptionBuilder progressInterval(Duration interval) {
        options.progressInterval = interval;
        return this;
    }

    /**
     * When to try again.
     *
     * @param retry default {@link Retry#DEFAULT}
     * @return this
     */
    public SubscriptionBuilder retry(Retry retry) {
        options.retry = retry;
        return this;
    }

    /**
     * Called with each progress.
     *
     * @param hook in the iterating thread
     * @return this
     */
    public SubscriptionBuilder onProgress(Consumer<Event.Progress> hook) {
        options.onProgress = hook;
        return this;
    }

    /**
     * Called with each failover, which without is thrown as {@link WalcastException.TimelineChanged}.
     *
     * @param hook in the iterating thread
     * @return this
     */
    public SubscriptionBuilder onTimelineChanged(Consumer<Event.TimelineChanged> hook) {
        options.onTimelineChanged = hook;
        return this;
    }

    /**
     * Called with each gap, which without is thrown as {@link WalcastException.Gap}.
     *
     * @param hook in the iterating thread
     * @return this
     */
    public SubscriptionBuilder onGap(Consumer<Event.Gap> hook) {
        options.onGap = hook;
        return this;
    }

    /**
     * Called with each event of a snapshot; one that starts over is thrown without.
     *
     * @param hook in the iterating thread
     * @return this
     */
    public SubscriptionBuilder onSnapshot(Consumer<Event> hook) {
        options.onSnapshot = hook;
        return this;
    }

    /**
     * Called with each loss of the stream, and the time until the next attempt.
     *
     * @param hook in the iterating thread
     * @return this
     */
    public SubscriptionBuilder onReconnect(BiConsumer<HubException, Duration> hook) {
        options.onReconnect = hook;
        return this;
    }

    /**
     * Subscribes. Connects when iterated.
     *
     * @return to be closed
     */
    public Subscription subscribe() {
        return client.subscribe(options);
    }

    /**
     * Rather than to subscribe: reads the transactions that a failover took back, for as long as the journal retains them. Of
     * what was said here that counts which selects and decodes.
     *
     * @param lineage that ended, as in {@link Event.TimelineChanged#oldLineage}, or that of a position which the hub refuses with
     *     {@link HubException.PositionDiverged}
     * @return to be closed
     */
    public RetractedTransactions readRetracted(String lineage) {
        return client.readRetracted(lineage, options);
    }

    /**
     * Adds globs from a collection.
     *
     * @param globs over {@code schema.table}
     * @return this
     */
    public SubscriptionBuilder tables(Collection<String> globs) {
        options.filter.addAllTables(globs);
        return this;
    }
}
