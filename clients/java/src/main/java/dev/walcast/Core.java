package dev.walcast;

import io.grpc.Status;
import java.time.Duration;
import java.util.function.Consumer;
import java.util.function.LongSupplier;
import walcast.v1.Walcast.AcknowledgeRequest;
import walcast.v1.Walcast.ConsumeRequest;
import walcast.v1.Walcast.SubscribeRequest;

/**
 * One subscription without its transport: where it resumes, what was handed out, what was acknowledged. Nothing in here waits
 * or does I/O. Acknowledging is safe from any thread, all else is the iterating thread's.
 */
final class Core {
    static final System.Logger LOG = System.getLogger("walcast");
    private static final long HEALTHY = Duration.ofSeconds(60).toNanos();

    final Options options;
    final Outbox outbox;
    final Assembler assembler;
    private final LongSupplier clock;
    private final Backoff backoff;
    private boolean useStart;
    private boolean unsure;
    private long openedAt;
    private long spentEvents;
    private long spentBytes;
    private Position firstAfter;
    private Object last;
    private volatile Event.Opened opened;
    private volatile Event.Progress progress;
    private volatile Position handedPosition;
    private volatile Position ackedPosition;
    private long handed;
    private long acked;

    Core(Options options, LongSupplier clock) {
        this.options = options;
        this.clock = clock;
        this.outbox = new Outbox(clock);
        this.backoff = new Backoff(options.retry, clock.getAsLong());
        this.assembler = new Assembler(Decoders.of(options.jsonAsText, options.types), options.maxTransactionBytes);
        this.useStart = options.subscriber.isEmpty();
    }

    Event.Opened opened() {
        return opened;
    }

    Event.Progress progress() {
        return progress;
    }

    /** Everything up to here has been handed to the user. */
    Position position() {
        return handedPosition;
    }

    Position ackedPosition() {
        return ackedPosition;
    }

    // -- opening and failing

    /** The first request of a new stream. */
    ConsumeRequest open() {
        assembler.reopen();
        spentEvents = 0;
        spentBytes = 0;
        openedAt = clock.getAsLong();
        Position resume = assembler.received;
        outbox.reopen(resume);
        SubscribeRequest.Builder request = SubscribeRequest.newBuilder()
                .setSubscriber(options.subscriber)
                .setStopAtTail(options.stopAtTail)
                .setMaxMessageBytes(options.maxMessageBytes);
        if (options.filter.build().getSerializedSize() > 0) {
            request.setFilter(options.filter);
        }
        if (options.progressInterval != null) {
            request.setProgressInterval(Messages.duration(options.progressInterval));
        }
        if (resume != null) {
            request.getStartBuilder().setAfter(resume.message());
        } else if (useStart && options.start != null) {
            request.setStart(Messages.start(options.start));
        }
        Position newest = ackedPosition;
        if (newest != null && resume != null && resume.reaches(newest)) {
            outbox.acknowledge(newest); // the last stream may have broken before it arrived
        }
        outbox.grant(options.windowEvents, options.windowBytes);
        return ConsumeRequest.newBuilder().setOpen(request).build();
    }

    /**
     * What to call before the next stream is opened, to learn whether a newer session has taken over meanwhile; null if that
     * is known. A connection that broke does not say it, and opening again would fence the other.
     */
    AcknowledgeRequest proof() {
        Position at = ackedPosition != null ? ackedPosition : firstAfter;
        return unsure && opened != null && at != null ? acknowledgement(at) : null;
    }

    AcknowledgeRequest acknowledgement(Position position) {
        return AcknowledgeRequest.newBuilder()
                .setSubscriber(options.subscriber)
                .setPosition(position.message())
                .setSession(opened.session())
                .build();
    }

    /** That call succeeded: the subscriber is still ours. */
    void proved() {
        unsure = false;
    }

    /** How long to wait until the next attempt; throws the error where another one does not help. */
    Duration failed(HubException error) {
        boolean neverOpened = assembler.received == null;
        if (error instanceof HubException.CheckpointMissing && neverOpened && !useStart && options.start != null) {
            useStart = true;
            LOG.log(
                    System.Logger.Level.INFO,
                    "subscriber {0} has no checkpoint: starting at {1}",
                    options.subscriber,
                    options.start);
            return Duration.ZERO;
        }
        long now = clock.getAsLong();
        if (opened != null && now - openedAt >= HEALTHY) {
            backoff.succeeded(now);
        }
        Duration delay = error.isRetryable() ? backoff.delay(error.retryAfter(), now) : null;
        if (delay == null) {
            throw error;
        }
        if (error instanceof HubException.ConnectionLost && !options.subscriber.isEmpty()) {
            unsure = true;
        }
        LOG.log(
                System.Logger.Level.WARNING,
                "stream lost, next attempt in {0} ms: {1}",
                delay.toMillis(),
                error.getMessage());
        return delay;
    }

    /** The stream ended with OK: null if that was asked for. */
    HubException ended() {
        return options.stopAtTail ? null : HubException.lost(Status.Code.UNAVAILABLE, "the stream ended");
    }

    // -- receiving

    void receive(byte[] response) {
        Position before = assembler.received;
        assembler.receive(response);
        if (assembler.opened != null) {
            opened(assembler.opened, before == null);
            assembler.opened = null;
        }
        if (before != null && !before.equals(assembler.received)) {
            backoff.succeeded(clock.getAsLong());
        }
        spentEvents += assembler.counted();
        spentBytes += response.length - assembler.free();
        if (spentEvents * 2 >= options.windowEvents || spentBytes * 2 >= options.windowBytes) {
            outbox.grant(spentEvents, spentBytes);
            spentEvents = 0;
            spentBytes = 0;
        }
    }

    private void opened(Event.Opened now, boolean first) {
        opened = now;
        if (first) {
            firstAfter = now.after();
            handedPosition = now.after();
            if (!options.subscriber.isEmpty() && useStart) {
                // From now on the subscriber has a place of its own, whatever happens before its first transaction.
                acknowledge(now.after(), 0);
            }
        }
        if (now.filterChanged()) {
            LOG.log(
                    System.Logger.Level.WARNING,
                    "subscriber {0}: the filter differs from the checkpoint''s",
                    options.subscriber);
        }
        LOG.log(
                System.Logger.Level.DEBUG,
                "stream opened behind {0}",
                now.after().lsn());
    }

    // -- handing out

    /** The next item for the user, a Transaction or an Event; null until more was received. */
    Object poll() {
        return assembler.ready.poll();
    }

    /** The user gets an item. */
    void hand(Object item) {
        if (item instanceof Transaction transaction) {
            transaction.core = this;
            hand(transaction, transaction.position());
            transaction.serial = handed;
        } else if (item instanceof Event.Commit commit) {
            Transaction transaction = commit.transaction();
            transaction.core = this;
            hand(commit, transaction.position());
            transaction.serial = handed;
        } else if (item instanceof Event.Progress passed) {
            passed(passed);
        } else if (item instanceof Event.TimelineChanged changed) {
            assembler.told(changed);
            hand(changed, changed.position());
        } else if (item instanceof Event.Gap gap) {
            hand(gap, gap.upTo());
        }
    }

    private synchronized void hand(Object item, Position position) {
        handed++;
        handedPosition = position;
        last = item;
    }

    /** Progress is acknowledged for the user when nothing before it is outstanding. */
    private void passed(Event.Progress passed) {
        progress = passed;
        synchronized (this) {
            handedPosition = passed.position();
            if (acked < handed || options.subscriber.isEmpty() || isAcked(passed.position())) {
                return;
            }
            ackedPosition = passed.position();
        }
        outbox.acknowledge(passed.position());
    }

    private boolean isAcked(Position position) {
        return ackedPosition != null && ackedPosition.reaches(position);
    }

    /** The user asks for the next item, so the last one is done. */
    void nextRequested() {
        Object done = last;
        last = null;
        if (done == null || !options.autoAck || options.subscriber.isEmpty()) {
            return;
        }
        if (done instanceof Transaction transaction) {
            acknowledge(transaction.position(), transaction.serial);
        } else if (done instanceof Event.Commit commit) {
            acknowledge(commit.transaction().position(), commit.transaction().serial);
        } else if (done instanceof Event.TimelineChanged changed) {
            acknowledge(changed.position(), 0);
        } else if (done instanceof Event.Gap gap) {
            acknowledge(gap.upTo(), 0);
        }
    }

    /** Hands an item that is not a transaction to its hook; throws where there is none and it matters. */
    void hook(Object item) {
        if (item instanceof Event.Progress passed) {
            call(options.onProgress, passed);
        } else if (item instanceof Event.TimelineChanged changed) {
            if (options.onTimelineChanged == null) {
                throw new WalcastException.TimelineChanged(changed);
            }
            options.onTimelineChanged.accept(changed);
        } else if (item instanceof Event.Gap gap) {
            if (options.onGap == null) {
                throw new WalcastException.Gap(gap);
            }
            options.onGap.accept(gap);
        } else if (item instanceof Event.SnapshotBegin begin && begin.restarted() && options.onSnapshot == null) {
            throw new WalcastException.SnapshotRestarted(begin);
        } else if (item instanceof Event event) {
            call(options.onSnapshot, event);
        }
    }

    private static <T> void call(Consumer<? super T> hook, T item) {
        if (hook != null) {
            hook.accept(item);
        }
    }

    // -- acknowledging

    /** Whether something was acknowledged that no progress has confirmed. */
    boolean isUnflushed() {
        Event.Progress newest = progress;
        Position confirmed = newest == null ? null : newest.checkpoint();
        Position position = ackedPosition;
        return position != null && (confirmed == null || !confirmed.reaches(position));
    }

    /** Everything up to and including the position is done. Serial: of the item whose position it is, or 0. */
    void acknowledge(Position position, long serial) {
        if (options.subscriber.isEmpty()) {
            throw new WalcastException.Misuse(
                    "an anonymous subscription has no checkpoint; give it a subscriber name, or store tx.position()");
        }
        synchronized (this) {
            Position at = handedPosition;
            if (at == null || (at.lineage().equals(position.lineage()) && !at.reaches(position))) {
                throw HubException.ahead("position " + position.lsn() + " has not been handed out yet");
            }
            if (serial != 0) {
                acked = Math.max(acked, serial);
            } else if (position.reaches(at)) {
                acked = handed;
            }
            if (isAcked(position)) {
                return;
            }
            ackedPosition = position;
        }
        outbox.acknowledge(position);
    }
}
