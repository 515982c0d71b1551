// Command vshd gives the host shells in the guest. It runs as root in the VM,
// under PID 1, and listens on vsock port 9001. In a container it runs as the
// container's user, started by garcon with a port of the host that it dials for
// its one session.
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
	"time"

	"github.com/auberge-vm/auberge/guest/vshd"
	"github.com/auberge-vm/auberge/vsock"
)

func main() {
	reserved := flag.Bool("reserved-only", false, "accept streams from the host's reserved source ports only; needed where the host's vsock is the kernel's")
	fd := flag.Int("listen-fd", -1, "listen on this inherited AF_VSOCK socket instead of making one")
	host := flag.Uint("forward_to_host_port", 0, "listen on nothing: dial this vsock port of the host, serve the one session on it, and end")
	inherit := flag.Bool("inherit_env", false, "give sessions the environment of vshd")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "vshd: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	// One thread at a time moves all there is to move. More of them look for
	// work in turns, which takes an emulated guest half of its time.
	runtime.GOMAXPROCS(1)
	syscall.Umask(0o022) // sessions inherit it
	var err error
	if *host != 0 {
		err = forward(*host, *inherit)
	} else {
		err = run(*fd, *reserved, *inherit)
	}
	if err != nil {
		slog.Error("vshd failed", "err", err)
		os.Exit(1)
	}
}

func run(fd int, reserved, inherit bool) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	l, err := listen(fd, reserved)
	if err != nil {
		return fmt.Errorf("listen for shells: %w", err)
	}
	return vshd.New(environment(inherit)).Serve(ctx, l)
}

func environment(inherit bool) vshd.Option {
	if inherit {
		return vshd.WithEnv(os.Environ())
	}
	return vshd.WithEnv(nil)
}

// dialTime is longer than the host waits for us.
const dialTime = 10 * time.Second

// forward serves one session on a stream to the host.
func forward(port uint, inherit bool) error {
	if uint64(port) >= uint64(vsock.CIDAny) {
		return fmt.Errorf("%d is no vsock port", port)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	dial, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conn, err := vsock.DialHost(dial, uint32(port))
	if err != nil {
		return fmt.Errorf("dial the host, which asked for a shell: %w", err)
	}
	vshd.New(vshd.InContainer(), environment(inherit)).ServeConn(ctx, conn)
	return nil
}

func listen(fd int, reserved bool) (net.Listener, error) {
	if fd < 0 {
		return vsock.ListenGuest(vsock.PortVshd, reserved)
	}
	f := os.NewFile(uintptr(fd), "listening socket")
	defer f.Close()
	return vsock.ListenGuestFile(f, vsock.PortVshd, reserved)
}
