// Vmc is the command-line client of Auberge's services.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/auberge-vm/auberge/client/vmc"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second one ends the program at once
	code := vmc.Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
