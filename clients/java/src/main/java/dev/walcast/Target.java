package dev.walcast;

import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.TlsChannelCredentials;
import java.io.IOException;
import java.io.InputStream;
import java.net.URI;
import java.util.Properties;
import java.util.concurrent.TimeUnit;
import java.util.function.Supplier;

/** Where the hub is and how to get in. */
record Target(String authority, Tls tls, Supplier<String> token, int maxMessageBytes) {
    static final String CLIENT = "walcast-java/" + version();
    private static final Metadata.Key<String> CLIENT_ID =
            Metadata.Key.of("client-id", Metadata.ASCII_STRING_MARSHALLER);
    private static final Metadata.Key<String> AUTHORIZATION =
            Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

    private static String version() {
        Properties properties = new Properties();
        try (InputStream file = Target.class.getResourceAsStream("version.properties")) {
            properties.load(file);
        } catch (IOException error) {
            throw new IllegalStateException(error);
        }
        return properties.getProperty("version");
    }

    /** {@code host:port}, {@code http://host:port} or {@code https://host:port}, which asks for TLS. */
    static Target parse(String address, Tls tls, Supplier<String> token, int maxMessageBytes) {
        boolean plain = !address.contains("://");
        URI uri = URI.create(plain ? "walcast://" + address : address);
        boolean secure = "https".equals(uri.getScheme());
        if (!plain && !secure && !"http".equals(uri.getScheme())) {
            throw new IllegalArgumentException(address + ": the scheme is http or https");
        }
        if ("http".equals(uri.getScheme()) && tls != null) {
            throw new IllegalArgumentException("TLS needs https://, or an address without a scheme");
        }
        if (uri.getHost() == null) {
            throw new IllegalArgumentException(address + ": not host:port");
        }
        int port = uri.getPort() >= 0 ? uri.getPort() : secure ? 443 : 50051;
        Tls settings = tls == null && secure ? new Tls() : tls;
        if (token != null && settings == null && !isLoopback(uri.getHost())) {
            Core.LOG.log(System.Logger.Level.WARNING, "the token goes to {0} in clear text: use TLS", uri.getHost());
        }
        return new Target(uri.getHost() + ":" + port, settings, token, maxMessageBytes);
    }

    private static boolean isLoopback(String host) {
        return host.equals("localhost") || host.startsWith("127.") || host.equals("[::1]");
    }

    /** A connection of its own. */
    ManagedChannel connect() {
        ManagedChannelBuilder<?> builder = Grpc.newChannelBuilder(authority, credentials())
                .userAgent(CLIENT)
                .maxInboundMessageSize(maxMessageBytes)
                .keepAliveTime(30, TimeUnit.SECONDS)
                .keepAliveTimeout(20, TimeUnit.SECONDS)
                .keepAliveWithoutCalls(false)
                .directExecutor() // callbacks only put what came into a queue
                .disableRetry()
                .disableServiceConfigLookUp();
        if (tls != null && tls.serverName() != null) {
            builder.overrideAuthority(tls.serverName());
        }
        return builder.build();
    }

    private ChannelCredentials credentials() {
        if (tls == null) {
            return InsecureChannelCredentials.create();
        }
        try {
            TlsChannelCredentials.Builder builder = TlsChannelCredentials.newBuilder();
            if (tls.ca() != null) {
                builder.trustManager(tls.ca().toFile());
            }
            if (tls.cert() != null) {
                builder.keyManager(tls.cert().toFile(), tls.key().toFile());
            }
            return builder.build();
        } catch (IOException error) {
            throw new IllegalArgumentException("cannot read the TLS files: " + error.getMessage(), error);
        }
    }

    /** Metadata of a call; the token is asked for each time. */
    Metadata metadata() {
        Metadata metadata = new Metadata();
        metadata.put(CLIENT_ID, CLIENT);
        if (token != null) {
            metadata.put(AUTHORIZATION, "Bearer " + token.get());
        }
        return metadata;
    }
}
