package maitred

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/auberge-vm/auberge/guest/core"
	"github.com/auberge-vm/auberge/vsock"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

const (
	// endGrace is how long processes may take to end after SIGTERM, as on
	// ChromeOS.
	endGrace = 10 * time.Second
	// answerGrace is how long answers may take to leave once all processes
	// have ended.
	answerGrace = time.Second
	// kernelLogDelay is how long the kernel's log waits after VmReady.
	kernelLogDelay = time.Second
)

// endSignals make PID 1 power off: our own poweroff command, Ctrl-Alt-Del,
// and what busybox's commands send.
var endSignals = []os.Signal{unix.SIGPWR, unix.SIGTERM, unix.SIGINT, unix.SIGUSR1, unix.SIGUSR2}

// deadlySignals would end a Go program, which PID 1 must not. They cannot be
// ignored instead, because children would inherit that.
var deadlySignals = []os.Signal{
	unix.SIGHUP, unix.SIGQUIT, unix.SIGABRT, unix.SIGTRAP, unix.SIGSTKFLT, unix.SIGSYS,
}

// runStageTwo is the VM's PID 1. It returns only when it cannot work or the
// machine cannot be switched off.
func runStageTwo() error {
	// The agent's live data is about a MiB: collecting it sooner costs little
	// and keeps some MiB for the VM.
	debug.SetGCPercent(50)
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, slices.Concat(endSignals, deadlySignals)...)
	log := core.NewLogger("maitred")
	params, err := core.ReadParams()
	if err != nil {
		return err
	}
	log.Info("running from the root disk")
	setUpSystem(log, params)
	logs := newLogShipper(log)
	collectLogs(log, logs)

	table := core.NewTable(log)
	services := core.NewSupervisor(table, log)
	server := NewServer(table, services, log)
	server.reservedVsock = params.ReservedVsock
	listener, err := vsock.ListenGuest(vsock.PortMaitred, params.ReservedVsock)
	if err != nil {
		return fmt.Errorf("the host cannot reach this VM: %w", err)
	}
	face := server.register()
	var running sync.WaitGroup
	failed := make(chan error, 1)
	running.Go(func() { failed <- face.Serve(listener) })
	startShells(log, services, params)
	log.Info("listening", "port", vsock.PortMaitred)

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	running.Go(func() {
		announce(ctx, log, readyPort(params))
		// Not before: the VM is awaited, its logs are not.
		shipLogs(ctx, log, logs)
	})

	awaitEnd(log, signals, server.shutdown, failed)
	cancel()
	services.Stop()
	server.endContainers()
	server.resize.stop(endGrace)
	if err := table.EndAll(endGrace); err != nil {
		log.Error("going on without them", "err", err)
	}
	logs.finish(logGrace)
	stopServer(face)
	running.Wait()
	return core.PowerOff(log)
}

// setUpSystem makes the rest of what programs expect. A VM that lacks a part
// of it can still be looked into, so nothing here ends the boot.
func setUpSystem(log *slog.Logger, params core.Params) {
	for _, m := range core.SystemMounts {
		if err := m.MakeAndMount(); err != nil {
			log.Error("a part of the system is missing", "err", err)
		}
	}
	steps := []func() error{
		func() error { return core.SetHostname(params, "") },
		core.LoopbackUp,
		func() error { return core.LinkResolver("", !params.WritableRoot) },
		// Ctrl-Alt-Del becomes SIGINT for us instead of a reset.
		func() error { return unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			log.Error("a part of the system is not set up", "err", err)
		}
	}
}

// collectLogs takes the programs' messages from now on, so that none of them
// waits for us.
func collectLogs(log *slog.Logger, logs *logShipper) {
	// By default few messages may wait, and programs do beyond. Only a new
	// socket takes the value over.
	os.WriteFile("/proc/sys/net/unix/max_dgram_qlen", []byte("256\n"), 0)
	source, err := core.ListenSyslog(syslogPath)
	if err != nil {
		log.Error("programs have nowhere to log to", "err", err)
		return
	}
	logs.read(source, logs.user)
}

// shipLogs sends the logs to the host, the kernel's from its beginning: that is
// some 40 KiB, and the host now configures the VM for somebody who waits.
func shipLogs(ctx context.Context, log *slog.Logger, logs *logShipper) {
	if err := logs.send(); err != nil {
		log.Error("the host does not get this VM's logs", "err", err)
		return
	}
	settle := time.NewTimer(kernelLogDelay)
	defer settle.Stop()
	select {
	case <-settle.C:
	case <-ctx.Done():
	}
	source, err := core.OpenKernelLog()
	if err != nil {
		log.Error("the host does not get the kernel's log", "err", err)
		return
	}
	logs.read(source, logs.kernel)
}

// startShells keeps vshd running, which writes to the console. The socket on
// which it listens is made here, so that the host finds a shell from the
// moment the VM is ready, and also while vshd is started again.
func startShells(log *slog.Logger, services *core.Supervisor, params core.Params) {
	socket, err := vsock.GuestSocket(vsock.PortVshd)
	if err != nil {
		log.Error("there will be no remote shells", "err", err)
		return
	}
	args := []string{"vshd", "--listen-fd", "3"}
	if params.ReservedVsock {
		args = append(args, "--reserved-only")
	}
	err = services.Start("vshd", core.Command{
		Path:   filepath.Join(core.AgentDir, "vshd"),
		Args:   args,
		Env:    os.Environ(),
		Output: os.Stderr,
		Files:  []*os.File{socket},
	})
	if err != nil {
		log.Error("there will be no remote shells", "err", err)
	}
}

// awaitEnd returns when the VM is to be powered off.
func awaitEnd(log *slog.Logger, signals <-chan os.Signal, asked <-chan struct{}, failed <-chan error) {
	for {
		select {
		case s := <-signals:
			if slices.Contains(endSignals, s) {
				log.Info("shutting down", "why", "signal "+s.String())
				return
			}
		case <-asked:
			log.Info("shutting down", "why", "the host asked")
			return
		case err := <-failed:
			log.Error("shutting down: the host can no longer reach this VM", "err", err)
			return
		}
	}
}

// stopServer lets answers leave.
func stopServer(face *grpc.Server) {
	late := time.AfterFunc(answerGrace, face.Stop)
	face.GracefulStop()
	late.Stop()
}
