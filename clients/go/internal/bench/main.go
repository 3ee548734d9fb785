// Command bench counts the changes per second that one process iterates, decoded to native rows, against a hub that has a
// table public.bench: ADDRESS ROWS. clients/conformance/throughput.py starts it.
package main

import (
	"context"
	"fmt"
	"os"
	"runtime/pprof"
	"strconv"
	"syscall"
	"time"

	walcast "github.com/walcast/walcast/clients/go"
)

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func cpu() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func run(address, expected string) error {
	rows, err := strconv.Atoi(expected)
	if err != nil {
		return err
	}
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
	options := walcast.SubscribeOptions{Tables: []string{"public.bench"}, Start: walcast.Earliest, StopAtTail: true}
	for _, kind := range []string{"changes", "transactions", "changes", "transactions"} {
		stream, err := client.Subscribe(context.Background(), options)
		if err != nil {
			return err
		}
		wall, used, count := time.Now(), cpu(), 0
		if kind == "changes" {
			for change, err := range stream.Changes() {
				if err != nil {
					return err
				}
				if change.After["id"] != nil {
					count++
				}
			}
		} else {
			for tx, err := range stream.Transactions() {
				if err != nil {
					return err
				}
				count += len(tx.Changes)
			}
		}
		took, spent := time.Since(wall).Seconds(), (cpu() - used).Seconds()
		if count != rows {
			return fmt.Errorf("%d changes instead of %d", count, rows)
		}
		fmt.Printf("%-22s %10.0f changes/s, %10.0f per second of the client's CPU\n", kind, float64(count)/took, float64(count)/spent)
	}
	return nil
}
