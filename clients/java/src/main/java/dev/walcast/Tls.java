package dev.walcast;

import java.nio.file.Path;

/**
 * How to connect with TLS: PEM files, read anew for each connection. Null is left out.
 *
 * @param ca authorities to trust; the system's where null
 * @param cert the client's certificate chain, for mutual TLS
 * @param key its private key, PKCS 8
 * @param serverName the name that the hub's certificate must have, where it is not the host
 */
public record Tls(Path ca, Path cert, Path key, String serverName) {

    /** Trusts the system's authorities. */
    public Tls() {
        this(null, null, null, null);
    }

    /**
     * Trusts a private authority.
     *
     * @param ca PEM file
     * @return the settings
     */
    public static Tls trusting(Path ca) {
        return new Tls(ca, null, null, null);
    }

    /**
     * The same with a client certificate.
     *
     * @param chain PEM file
     * @param privateKey PEM file, PKCS 8
     * @return a copy
     */
    public Tls identity(Path chain, Path privateKey) {
        return new Tls(ca, chain, privateKey, serverName);
    }

    /**
     * The same with another name in the hub's certificate.
     *
     * @param name as in the certificate
     * @return a copy
     */
    public Tls serverName(String name) {
        return new Tls(ca, cert, key, name);
    }
}
