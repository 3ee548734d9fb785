package dev.walcast;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.Locale;

/** Iterates a table's changes, decoded to native rows, as often as it is told to: see clients/README.md. */
public final class Bench {
    private Bench() {}

    /**
     * Reads orders from standard input.
     *
     * @param arguments address, table
     */
    public static void main(String[] arguments) throws IOException {
        BufferedReader orders = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        try (Client client = Client.of(arguments[0])) {
            System.out.printf("{\"ready\": \"Java %s\"}%n", Runtime.version());
            for (String order = orders.readLine(); order != null; order = orders.readLine()) {
                if (!order.equals("rows")) {
                    throw new IllegalArgumentException(order);
                }
                pass(client, arguments[1]);
            }
        }
    }

    private static void pass(Client client, String table) {
        long began = System.nanoTime();
        int changes = 0;
        int nulls = 0;
        int digest = 0;
        try (Subscription stream = client.subscription()
                .tables(table)
                .start(Start.earliest())
                .stopAtTail()
                .subscribe()) {
            for (Transaction transaction : stream) {
                for (Change change : transaction) {
                    Row row = change.after();
                    changes++;
                    digest = digest * 31 + row.getLong("id").intValue();
                    if (row.get("note") == null) {
                        nulls++;
                    }
                }
            }
        }
        System.out.printf(
                Locale.ROOT,
                "{\"changes\": %d, \"nulls\": %d, \"digest\": %d, \"seconds\": %f}%n",
                changes,
                nulls,
                Integer.toUnsignedLong(digest),
                (System.nanoTime() - began) / 1e9);
    }
}
