package dev.walcast;

import java.time.Duration;
import java.time.temporal.ChronoUnit;

/**
 * PostgreSQL's interval. A month has no fixed number of days, nor has a day a fixed number of hours.
 *
 * @param months including years
 * @param days days
 * @param microseconds the rest
 */
public record Interval(long months, long days, long microseconds) {

    /**
     * As a duration, a day being 24 hours.
     *
     * @return the duration
     * @throws ArithmeticException if there are months
     */
    public Duration toDuration() {
        if (months != 0) {
            throw new ArithmeticException(months + " months are no fixed number of days");
        }
        return Duration.ofDays(days).plus(microseconds, ChronoUnit.MICROS);
    }

    /** As IntervalStyle postgres prints it: {@code -1 years -2 mons +3 days -04:05:06.7}. */
    static Object parse(String text) {
        if (text.equals("infinity") || text.equals("-infinity")) {
            return new Unrepresentable("interval", text);
        }
        long months = 0;
        long days = 0;
        long microseconds = 0;
        String[] words = text.split(" ");
        for (int at = 0; at < words.length; at++) {
            if (words[at].indexOf(':') >= 0) {
                microseconds = clock(words[at]);
                continue;
            }
            if (at + 1 == words.length) {
                throw new IllegalArgumentException("not an interval: " + text);
            }
            long amount = Long.parseLong(words[at++]);
            switch (words[at]) {
                case "year", "years" -> months += 12 * amount;
                case "mon", "mons" -> months += amount;
                case "day", "days" -> days += amount;
                default -> throw new IllegalArgumentException("not an interval: " + text);
            }
        }
        return new Interval(months, days, microseconds);
    }

    private static long clock(String text) {
        boolean negative = text.charAt(0) == '-';
        String[] parts = (negative || text.charAt(0) == '+' ? text.substring(1) : text).split("[:.]");
        long seconds = (Long.parseLong(parts[0]) * 60 + Long.parseLong(parts[1])) * 60 + Long.parseLong(parts[2]);
        long fraction = parts.length > 3 ? Long.parseLong((parts[3] + "000000").substring(0, 6)) : 0;
        long microseconds = seconds * 1_000_000 + fraction;
        return negative ? -microseconds : microseconds;
    }
}
