package dev.walcast;

import java.time.Duration;

/**
 * Exponential back-off with full jitter; what the hub asks for by RetryInfo is never undercut.
 *
 * @param initial upper bound of the first delay
 * @param maximum upper bound of all delays
 * @param giveUpAfter give up when nothing was received for this long; null is never
 */
public record Retry(Duration initial, Duration maximum, Duration giveUpAfter) {
    /** 100 ms to 30 s, for ever. */
    public static final Retry DEFAULT = new Retry(Duration.ofMillis(100), Duration.ofSeconds(30), null);

    /**
     * The same with another time to give up after.
     *
     * @param time without having received anything; null is never
     * @return a copy
     */
    public Retry giveUpAfter(Duration time) {
        return new Retry(initial, maximum, time);
    }
}
