package dev.walcast;

/**
 * A column of one relation version.
 *
 * @param name unquoted
 * @param typeName "int4", "timestamptz"; types outside pg_catalog as "schema.name"
 * @param typeOid pg_type.oid, unsigned
 * @param typeModifier pg_attribute.atttypmod; -1 for none
 * @param inIdentity whether it is part of the replica identity
 */
public record Column(String name, String typeName, long typeOid, int typeModifier, boolean inIdentity) {}
