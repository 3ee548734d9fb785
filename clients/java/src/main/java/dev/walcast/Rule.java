package dev.walcast;

import java.util.Collection;
import java.util.List;

/**
 * What is selected of the tables that match, instead of the subscription's columns, where and operations. The first rule
 * that matches holds.
 *
 * @param tables one glob over {@code schema.table}
 * @param columns globs over {@code schema.table.column}; empty is all
 * @param where a predicate; empty is none
 * @param operations empty is all
 */
public record Rule(String tables, Collection<String> columns, String where, Collection<Operation> operations) {

    /**
     * All columns and operations of the tables' rows that match a predicate.
     *
     * @param tables one glob over {@code schema.table}
     * @param where a predicate
     */
    public Rule(String tables, String where) {
        this(tables, List.of(), where, List.of());
    }
}
