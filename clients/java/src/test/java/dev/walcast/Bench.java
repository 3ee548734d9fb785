package dev.walcast;

import java.lang.management.ManagementFactory;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import java.util.function.LongSupplier;

/** Changes per second that one process decodes to native rows: driven by scripts/bench.py. */
public final class Bench {
    private Bench() {}

    private static long cpu() {
        return ((com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean())
                .getProcessCpuTime();
    }

    private static SubscriptionBuilder bench(Client client) {
        return client.subscription().tables("public.bench").start(Start.earliest()).stopAtTail();
    }

    /**
     * Reads a table's changes again and again, and then the same responses without the network.
     *
     * @param arguments address, changes, rounds
     */
    public static void main(String[] arguments) throws InterruptedException {
        long rows = Long.parseLong(arguments[1]);
        int rounds = Integer.parseInt(arguments[2]);
        try (Client client = Client.of(arguments[0])) {
            for (int round = 0; round < rounds; round++) {
                timed("Java, from the hub", rows, () -> {
                    try (Subscription stream = bench(client).subscribe()) {
                        return decode(stream);
                    }
                });
            }
        }
        Options options = new Options();
        options.start = Start.earliest();
        options.stopAtTail = true;
        options.filter.addTables("public.bench");
        List<byte[]> responses = record(Target.parse(arguments[0], null, null, 64 << 20), options);
        for (int round = 0; round < 2 * rounds; round++) {
            timed("Java, without a network", rows, () -> {
                Core core = new Core(options, System::nanoTime);
                core.open();
                long count = 0;
                for (byte[] response : responses) {
                    core.receive(response);
                    for (Object item = core.poll(); item != null; item = core.poll()) {
                        if (item instanceof Transaction transaction) {
                            count += decode(List.of(transaction).iterator());
                        }
                    }
                }
                return count;
            });
        }
    }

    private static List<byte[]> record(Target target, Options options) throws InterruptedException {
        Core core = new Core(options, System::nanoTime);
        StreamCall call = new StreamCall(target, core);
        List<byte[]> responses = new ArrayList<>();
        while (call.receive() instanceof StreamCall.Received received) {
            responses.add(received.bytes());
            core.receive(received.bytes());
        }
        call.close();
        return responses;
    }

    private static long decode(Iterator<Transaction> transactions) {
        long values = 0;
        while (transactions.hasNext()) {
            for (Change change : transactions.next()) {
                values += change.after().size();
            }
        }
        return values / 5;
    }

    private static void timed(String name, long rows, LongSupplier run) {
        long wall = System.nanoTime();
        long cpu = cpu();
        long count = run.getAsLong();
        wall = System.nanoTime() - wall;
        cpu = cpu() - cpu;
        if (count != rows) {
            throw new IllegalStateException(count + " changes");
        }
        System.out.printf(
                "%-24s %,10.0f changes/s, %,10.0f per second of the client's CPU%n",
                name, count * 1e9 / wall, count * 1e9 / cpu);
    }
}
