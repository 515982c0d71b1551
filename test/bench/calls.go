package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// callsPerSample is over how many calls the median of one measurement is
// taken.
const callsPerSample = 200

// p50 is the median of a call's time in microseconds.
func p50(call func() error) func() (float64, error) { return p50of(callsPerSample, call) }

// p50of is p50 over another number of calls.
func p50of(n int, call func() error) func() (float64, error) {
	return func() (float64, error) {
		took := make([]float64, n)
		for i := range took {
			begin := time.Now()
			if err := call(); err != nil {
				return 0, err
			}
			took[i] = time.Since(begin).Seconds() * 1e6
		}
		return median(took), nil
	}
}

// benchCalls measures what a call costs, against two peers on the same bus
// with the same client. The VM that is asked about is a stand-in, so that no
// guest takes turns on the processors.
func benchCalls(ctx context.Context, o *options, t *table) error {
	b, crowd, err := o.newCrowdBench(ctx)
	if err != nil {
		return err
	}
	defer b.close()
	defer crowd.close()
	if _, err := b.start("vm"); err != nil {
		return errors.Join(err, crowd.err())
	}
	req, err := proto.Marshal(&pb.GetVmInfoRequest{Name: "vm"})
	if err != nil {
		return err
	}
	var reply []byte
	info := func() error {
		return b.object().Call(dbus.ConciergeInterface+".GetVmInfo", 0, req).Store(&reply)
	}
	if err := info(); err != nil {
		return err
	}

	stopEcho, err := b.startEcho(len(reply))
	if err != nil {
		return err
	}
	defer stopEcho()
	echo := b.conn.Object(echoName, echoPath)
	var echoed []byte
	p, err := compare(ctx, o.pairs, p50(info), p50(func() error {
		return echo.Call(echoName+".Echo", 0, req).Store(&echoed)
	}))
	if err != nil {
		return err
	}
	t.ratio("GetVmInfo, p50", fmt.Sprintf("godbus server, answers of as many bytes, %d", len(reply)), "us", p, atMost(1.15))

	root := o.libvirt
	if root == "" {
		find := exec.CommandContext(ctx, "test/bench/libvirt-dbus.sh")
		find.Stderr = os.Stderr
		out, err := find.Output()
		if err != nil {
			return fmt.Errorf("test/bench/libvirt-dbus.sh, which finds or fetches libvirt-dbus: %w", err)
		}
		root = strings.TrimSpace(string(out))
	}
	state, stopLibvirt, err := b.startLibvirt(root)
	if err != nil {
		return err
	}
	defer stopLibvirt()
	if p, err = compare(ctx, o.pairs, p50(info), p50(state)); err != nil {
		return err
	}
	t.ratio("GetVmInfo, p50", "libvirt-dbus, `Domain.GetState` on `test:///default`", "us", p, atMost(0.80))
	return nil
}

// startEcho starts the echo server.
func (b *bench) startEcho(size int) (stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, echoCommand, b.Address, fmt.Sprint(size))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		in.Close()
		cmd.Wait()
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		stop()
		return nil, fmt.Errorf("the echo server did not start: %w", err)
	}
	return stop, nil
}

// startLibvirt starts libvirt-dbus below root and returns a call that asks
// for the state of libvirt's test domain.
func (b *bench) startLibvirt(root string) (state func() error, stop func(), err error) {
	libs, err := filepath.Glob(filepath.Join(root, "usr/lib/*-linux-gnu"))
	if err != nil || len(libs) == 0 {
		return nil, nil, fmt.Errorf("no libraries in %s (test/bench/libvirt-dbus.sh prints what --libvirt takes)", root)
	}
	cmd := exec.Command(filepath.Join(root, "usr/sbin/libvirt-dbus"), "--system")
	cmd.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+b.Address)
	if root != "/" {
		cmd.Env = append(cmd.Env, "LD_LIBRARY_PATH="+libs[0],
			"VIRT_DBUS_INTERFACES_DIR="+filepath.Join(root, "usr/share/dbus-1/interfaces"))
	}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	owned := make(chan *godbus.Signal, 16)
	b.conn.Signal(owned)
	defer b.conn.RemoveSignal(owned)
	match := []godbus.MatchOption{godbus.WithMatchSender("org.freedesktop.DBus"), godbus.WithMatchMember("NameOwnerChanged"),
		godbus.WithMatchArg(0, "org.libvirt")}
	if err := b.conn.AddMatchSignal(match...); err != nil {
		return nil, nil, err
	}
	defer b.conn.RemoveMatchSignal(match...)
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	stop = func() {
		cmd.Process.Signal(syscall.SIGKILL)
		<-ended
	}
	if err := b.awaitOwner(owned, ended); err != nil {
		stop()
		return nil, nil, err
	}
	var domains []godbus.ObjectPath
	err = b.conn.Object("org.libvirt", "/org/libvirt/Test").Call("org.libvirt.Connect.ListDomains", 0, uint32(0)).Store(&domains)
	if err != nil || len(domains) == 0 {
		stop()
		return nil, nil, fmt.Errorf("libvirt-dbus lists no domains: %v, %w", domains, err)
	}
	domain := b.conn.Object("org.libvirt", domains[0])
	return func() error {
		var state struct{ State, Reason int32 }
		return domain.Call("org.libvirt.Domain.GetState", 0, uint32(0)).Store(&state)
	}, stop, nil
}

func (b *bench) awaitOwner(owned <-chan *godbus.Signal, ended <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	for {
		select {
		case s := <-owned:
			if len(s.Body) > 0 && s.Body[0] == "org.libvirt" {
				return nil
			}
		case <-ended:
			return errors.New("libvirt-dbus ended at once")
		case <-ctx.Done():
			return fmt.Errorf("libvirt-dbus takes no name: %w", context.Cause(ctx))
		}
	}
}
