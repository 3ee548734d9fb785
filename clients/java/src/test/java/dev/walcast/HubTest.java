package dev.walcast;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.condition.EnabledIfEnvironmentVariable;

/** Against a real PostgreSQL and a real hub; scripts/test.sh says so where there is none. */
@EnabledIfEnvironmentVariable(named = "WALCAST_BIN", matches = ".+")
class HubTest {
    private static void run(String... command) throws IOException, InterruptedException {
        Path log = Files.createTempFile("hub-test", ".log");
        try {
            Process process = new ProcessBuilder(command)
                    .redirectErrorStream(true)
                    .redirectOutput(log.toFile())
                    .start();
            assertTrue(process.waitFor(15, TimeUnit.MINUTES), () -> read(log));
            assertEquals(0, process.exitValue(), () -> read(log));
        } finally {
            Files.delete(log);
        }
    }

    private static String read(Path log) {
        try {
            return Files.readString(log);
        } catch (IOException error) {
            return error.toString();
        }
    }

    @Test
    void conformance() throws IOException, InterruptedException {
        String runner = Path.of("scripts/runner.sh").toAbsolutePath().toString();
        run("python3", "../conformance/run.py", "--runner", runner);
    }
}
