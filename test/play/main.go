package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/auberge-vm/auberge/test/testbed"
)

func main() {
	if err := testbed.Enter(); err != nil {
		panic(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	log, _ := os.Create("/tmp/img/q/daemons.log")
	bed, err := testbed.New(ctx, testbed.Options{Bin: os.Args[1], Image: os.Args[2], Log: log})
	if err != nil {
		panic(err)
	}
	defer bed.Close()
	if _, err := bed.StartConcierge(ctx, "--accel", "tcg"); err != nil {
		panic(err)
	}
	u := testbed.Alice
	fmt.Println("bed", bed.Dir)
	for {
		files, _ := filepath.Glob("/tmp/img/q/*.sh")
		for _, f := range files {
			text, _ := os.ReadFile(f)
			out, _ := os.Create(strings.TrimSuffix(f, ".sh") + ".out")
			cmd := bed.Command(u, "sh", "-s")
			cmd.Path = "/bin/sh"
			cmd.Args = []string{"sh", "-c", string(text)}
			cmd.Env = append(cmd.Env, "PATH="+bed.Bin+":/usr/bin:/bin:/usr/sbin:/sbin")
			cmd.Stdout, cmd.Stderr = out, out
			start := time.Now()
			err := cmd.Run()
			fmt.Fprintf(out, "== %v, %.1f s\n", err, time.Since(start).Seconds())
			out.Close()
			os.Rename(strings.TrimSuffix(f, ".sh")+".out", strings.TrimSuffix(f, ".sh")+".done")
			os.Remove(f)
		}
		if _, err := os.Stat("/tmp/img/q/quit"); err == nil || ctx.Err() != nil {
			os.Remove("/tmp/img/q/quit")
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
}
