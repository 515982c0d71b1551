// Command tremplin keeps a VM's containers. It runs as root in the VM, under
// PID 1, and listens on vsock port 8890.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/auberge-vm/auberge/guest/tremplin"
	"github.com/auberge-vm/auberge/vsock"
)

// powerOffGrace is how long containers may take to stop; PID 1 does not wait
// for all of it.
const powerOffGrace = 11 * time.Second

func main() {
	cfg := tremplin.DefaultConfig()
	reserved := flag.Bool("reserved-only", false, "accept streams from the host's reserved source ports only; needed where the host's vsock is the kernel's")
	flag.IntVar(&cfg.Milestone, "milestone", cfg.Milestone, "what stands for %d in the address of an image server")
	flag.DurationVar(&cfg.DownloadIdle, "download-idle", duration("TREMPLIN_DOWNLOAD_IDLE", cfg.DownloadIdle), "give up a download without a byte for so long; also TREMPLIN_DOWNLOAD_IDLE")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "tremplin: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	syscall.Umask(0o022)
	log := tremplin.NewLogger()
	if err := run(cfg, log, *reserved); err != nil {
		log.Error("tremplin failed", "err", err)
		fmt.Fprintf(os.Stderr, "tremplin: %v\n", err)
		os.Exit(1)
	}
}

// duration reads one from the environment.
func duration(name string, otherwise time.Duration) time.Duration {
	if d, err := time.ParseDuration(os.Getenv(name)); err == nil && d > 0 {
		return d
	}
	return otherwise
}

func run(cfg tremplin.Config, log *slog.Logger, reserved bool) error {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGPWR, syscall.SIGTERM, syscall.SIGINT)
	face, err := vsock.ListenGuest(vsock.PortTremplin, reserved)
	if err != nil {
		return fmt.Errorf("the host cannot reach the containers' agent: %w", err)
	}
	transfers, err := vsock.ListenGuest(vsock.PortTransfer, reserved)
	if err != nil {
		return fmt.Errorf("the host cannot reach the containers' agent: %w", err)
	}
	s, err := tremplin.NewServer(cfg, log, func(ctx context.Context) (net.Conn, error) {
		return vsock.DialHost(ctx, vsock.PortTremplinListener)
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		if sig := <-signals; sig == syscall.SIGPWR {
			log.Info("the VM is shutting down, stopping the containers")
			// PID 1 sends SIGTERM to all next; what is being done goes on.
			s.PowerOff(powerOffGrace)
		}
		cancel()
	}()
	return s.Run(ctx, face, transfers)
}
