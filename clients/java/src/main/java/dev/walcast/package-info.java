/**
 * Committed changes of a PostgreSQL database from a walcast hub: {@link dev.walcast.Client} opens {@link
 * dev.walcast.Subscription}s, which are iterated.
 */
package dev.walcast;
