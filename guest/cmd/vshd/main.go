// Command vshd gives the host shells in the guest. It runs as root in the VM,
// under PID 1, and listens on vsock port 9001.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/auberge-vm/auberge/guest/vshd"
	"github.com/auberge-vm/auberge/vsock"
)

func main() {
	reserved := flag.Bool("reserved-only", false, "accept streams from the host's reserved source ports only; needed where the host's vsock is the kernel's")
	fd := flag.Int("listen-fd", -1, "listen on this inherited AF_VSOCK socket instead of making one")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "vshd: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	// One thread at a time moves all there is to move. More of them look for
	// work in turns, which takes an emulated guest half of its time.
	runtime.GOMAXPROCS(1)
	syscall.Umask(0o022) // sessions inherit it
	if err := run(*fd, *reserved); err != nil {
		slog.Error("vshd failed", "err", err)
		os.Exit(1)
	}
}

func run(fd int, reserved bool) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	l, err := listen(fd, reserved)
	if err != nil {
		return fmt.Errorf("listen for shells: %w", err)
	}
	return vshd.New().Serve(ctx, l)
}

func listen(fd int, reserved bool) (net.Listener, error) {
	if fd < 0 {
		return vsock.ListenGuest(vsock.PortVshd, reserved)
	}
	f := os.NewFile(uintptr(fd), "listening socket")
	defer f.Close()
	return vsock.ListenGuestFile(f, vsock.PortVshd, reserved)
}
