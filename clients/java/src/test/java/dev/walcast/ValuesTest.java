package dev.walcast;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.math.BigDecimal;
import java.math.BigInteger;
import java.time.Duration;
import java.time.Instant;
import java.time.LocalDate;
import java.time.LocalDateTime;
import java.time.LocalTime;
import java.time.OffsetTime;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;

/** Text as PostgreSQL prints it, to values. All types against a real PostgreSQL are in the conformance scenario. */
class ValuesTest {
    private static Object decode(String type, String text) {
        return Decoders.of(false, Map.of()).get(type).decode(text);
    }

    @Test
    void datesAndTimes() {
        assertEquals(LocalDate.of(2024, 2, 29), decode("date", "2024-02-29"));
        assertEquals(LocalDate.of(12345, 1, 1), decode("date", "12345-01-01"));
        assertEquals(LocalTime.of(23, 59, 59, 900_000_000), decode("time", "23:59:59.9"));
        assertEquals(OffsetTime.parse("12:00:00.000001-03:30"), decode("timetz", "12:00:00.000001-03:30"));
        assertEquals(OffsetTime.parse("12:00:00+05:30:15"), decode("timetz", "12:00:00+05:30:15"));
        assertEquals(LocalDateTime.of(2024, 2, 29, 12, 34, 56), decode("timestamp", "2024-02-29 12:34:56"));
        assertEquals(Instant.parse("2024-02-29T12:34:56.78Z"), decode("timestamptz", "2024-02-29 12:34:56.78+00"));
        for (String text : List.of("infinity", "-infinity", "0044-03-15 BC")) {
            assertEquals(new Unrepresentable("date", text), decode("date", text));
        }
        assertEquals(new Unrepresentable("time", "24:00:00"), decode("time", "24:00:00"));
        assertThrows(IllegalArgumentException.class, () -> decode("date", "2024-2-9"));
        assertThrows(IllegalArgumentException.class, () -> decode("timestamptz", "2024-02-29 12:34:56"));
    }

    @Test
    void intervals() {
        assertEquals(
                new Interval(-14, 3, -14_706_700_000L), decode("interval", "-1 years -2 mons +3 days -04:05:06.7"));
        assertEquals(new Interval(0, 0, 0), decode("interval", "00:00:00"));
        assertEquals(new Unrepresentable("interval", "infinity"), decode("interval", "infinity"));
        assertEquals(Duration.ofHours(25), new Interval(0, 1, 3_600_000_000L).toDuration());
        assertThrows(ArithmeticException.class, new Interval(1, 0, 0)::toDuration);
        assertThrows(IllegalArgumentException.class, () -> decode("interval", "1 fortnight"));
    }

    @Test
    void arraysAndRanges() {
        assertEquals(List.of(List.of(1L, 2L), Arrays.asList(3L, null)), decode("_int4", "[0:1][1:2]={{1,2},{3,NULL}}"));
        assertEquals(List.of("a", "b,c", "d\"e", "NULL", ""), decode("_text", "{a,\"b,c\",\"d\\\"e\",\"NULL\",\"\"}"));
        assertEquals(List.of("(1,1),(0,0)", "(2,2),(1,1)"), decode("_box", "{(1,1),(0,0);(2,2),(1,1)}"));
        assertEquals(new Range(1L, 5L, true, false, false), decode("int4range", "[1,5)"));
        assertEquals(new Range(null, null, false, false, false), decode("daterange", "(,)"));
        assertEquals(Range.EMPTY, decode("numrange", "empty"));
        assertEquals(
                List.of(new Range(1L, 2L, true, false, false), new Range(5L, null, true, false, false)),
                decode("int4multirange", "{[1,2),[5,)}"));
        assertEquals(
                LocalDateTime.of(2024, 1, 1, 0, 0), ((Range) decode("tsrange", "[\"2024-01-01 00:00:00\",)")).lower());
        assertThrows(IllegalArgumentException.class, () -> decode("_int4", "{1,2"));
        assertThrows(IllegalArgumentException.class, () -> decode("int4range", "[1,5"));
    }

    @Test
    void json() {
        assertEquals(Map.of("a", Arrays.asList(1L, null, true)), decode("jsonb", "{\"a\": [1, null, true]}"));
        assertEquals(new BigInteger("12345678901234567890"), decode("json", "12345678901234567890"));
        assertEquals(new BigDecimal("0.10"), decode("json", "0.10"));
        assertEquals("a\"\n\u00fc\ud83d\ude00", decode("json", "\"a\\\"\\n\\u00fc\\ud83d\\ude00\""));
        assertThrows(IllegalArgumentException.class, () -> decode("json", "[1,]"));
        assertThrows(IllegalArgumentException.class, () -> decode("json", "[".repeat(100_000)));
        assertEquals(null, Decoders.of(true, Map.of()).get("json"));
    }

    @Test
    void numbers() {
        assertEquals(new BigDecimal("-0.000000000000000000001"), decode("numeric", "-0.000000000000000000001"));
        assertEquals(new Unrepresentable("numeric", "NaN"), decode("numeric", "NaN"));
    }

    @Test
    void positionsAndStarts() {
        Position position = new Position("1/ABC", "00ff", 3, "01");
        assertEquals(position, Position.parse(position.toString()));
        assertEquals(new Start.After(position), Start.parse(position.toString()));
        assertEquals(position, Position.of(position.message()));
        assertEquals(new Start.AfterLsn("0/10"), Start.parse("0/10"));
        assertThrows(IllegalArgumentException.class, () -> Start.parse("yesterday"));
    }

    @Test
    void filterHelpers() {
        assertEquals(
                "\"status\" = 'it''s' AND \"n\" IN (1, 2) AND \"gone\" IS NULL",
                Where.column("status", "it's")
                        .and("n", List.of(1, 2))
                        .and("gone", null)
                        .toString());
        assertThrows(IllegalArgumentException.class, () -> Where.column("n", List.of()));
    }
}
