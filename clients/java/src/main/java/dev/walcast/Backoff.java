package dev.walcast;

import java.time.Duration;
import java.util.concurrent.ThreadLocalRandom;
import java.util.function.LongUnaryOperator;

/** The state of one subscription's retries. Times in nanoseconds. */
final class Backoff {
    private final Retry retry;
    private final LongUnaryOperator jitter;
    private int failures;
    private long healthy;

    Backoff(Retry retry, long now) {
        this(retry, now, ceiling -> ThreadLocalRandom.current().nextLong(ceiling + 1));
    }

    Backoff(Retry retry, long now, LongUnaryOperator jitter) {
        this.retry = retry;
        this.healthy = now;
        this.jitter = jitter;
    }

    /** The stream moved forward. */
    void succeeded(long now) {
        failures = 0;
        healthy = now;
    }

    /** How long to wait before the next attempt; null to give up. */
    Duration delay(Duration asked, long now) {
        Duration limit = retry.giveUpAfter();
        if (limit != null && now - healthy >= limit.toNanos()) {
            return null;
        }
        double doubled = retry.initial().toNanos() * Math.pow(2, Math.min(failures, 60));
        failures++;
        long ceiling = (long) Math.min(retry.maximum().toNanos(), doubled);
        return (asked == null ? Duration.ZERO : asked).plusNanos(jitter.applyAsLong(ceiling));
    }
}
