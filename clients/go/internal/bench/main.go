// Command bench iterates a table's changes, decoded to native rows, as often as it is told to: see clients/README.md. CPU_PROFILE
// names a file for a profile.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"time"

	walcast "github.com/walcast/walcast/clients/go"
)

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(address, table string) error {
	if path := os.Getenv("CPU_PROFILE"); path != "" {
		file, err := os.Create(path)
		if err != nil {
			return err
		}
		defer file.Close()
		if err := pprof.StartCPUProfile(file); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	client, err := walcast.NewClient(address, walcast.Options{})
	if err != nil {
		return err
	}
	defer client.Close()
	fmt.Printf("{\"ready\": \"Go %s\"}\n", runtime.Version()[2:])
	for orders := bufio.NewScanner(os.Stdin); orders.Scan(); {
		if orders.Text() != "rows" {
			return fmt.Errorf("not known: %s", orders.Text())
		}
		if err := pass(client, table); err != nil {
			return err
		}
	}
	return nil
}

func pass(client *walcast.Client, table string) error {
	began := time.Now()
	stream, err := client.Subscribe(context.Background(),
		walcast.SubscribeOptions{Tables: []string{table}, Start: walcast.Earliest, StopAtTail: true})
	if err != nil {
		return err
	}
	changes, nulls, digest := 0, 0, uint32(0)
	for change, err := range stream.Changes() {
		if err != nil {
			return err
		}
		changes++
		digest = digest*31 + uint32(change.After["id"].(int64))
		if change.After["note"] == nil {
			nulls++
		}
	}
	seconds := time.Since(began).Seconds()
	fmt.Printf("{\"changes\": %d, \"nulls\": %d, \"digest\": %d, \"seconds\": %f}\n", changes, nulls, digest, seconds)
	return nil
}
