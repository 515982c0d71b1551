package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/protos/ciceronepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// termina is the VM with room for containers.
const termina = "termina"

// ours is the container that Auberge has made, theirs one by the incus command.
const (
	ours   = "penguin"
	theirs = "theirs"
)

// boots is how often a container is started whose boot is waited for: that is
// the container's own, and takes long.
const boots = 5

// A keeper is a bench with both daemons and such a VM. Whatever is measured in
// one shares it, for it takes minutes to make.
type keeper struct {
	*bench
	ear  *testbed.Ear
	root *rootShell
	// made: there is a container of ours; runs: it is running.
	made, runs bool
}

// keeper returns the one there is, or starts it. run ends it.
func (o *options) keeper(ctx context.Context) (*keeper, error) {
	if o.kept != nil {
		return o.kept, nil
	}
	k, err := o.newKeeper(ctx)
	if err == nil {
		o.kept = k
	}
	return k, err
}

// newKeeper starts the daemons and the VM, and the manager of its containers.
func (o *options) newKeeper(ctx context.Context) (k *keeper, err error) {
	b, err := o.newBench(ctx, "--accel", o.accel)
	if err != nil {
		return nil, err
	}
	k = &keeper{bench: b, ear: testbed.Listen(b.conn)}
	defer func() {
		if err != nil {
			k.close()
		}
	}()
	if _, err = b.StartCicerone(ctx); err != nil {
		return nil, err
	}
	settings := map[string]godbus.Variant{"memory": godbus.MakeVariant(uint64(3072)), "cpus": godbus.MakeVariant(uint32(2))}
	if err = b.object().Call(dbus.Concierge1Name+".ConfigureVm", 0, termina, "", settings).Err; err != nil {
		return nil, err
	}
	start := b.Command(b.user, "vmc", "start", termina, "--size", "16G")
	if out, err := start.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("vmc start: %w: %s", err, out)
	}
	if _, err = heard[*ciceronepb.TremplinStartedSignal](k, nil); err != nil {
		return nil, err
	}
	if k.root, err = b.newRootShell(); err != nil {
		return nil, err
	}
	return k, nil
}

func (k *keeper) close() {
	if k.root != nil {
		k.root.close()
	}
	k.bench.close()
	<-k.ear.Done()
}

// heard waits for a signal.
func heard[M proto.Message](k *keeper, fits func(M) bool) (M, error) {
	ctx, cancel := context.WithTimeout(k.ctx, callTimeout)
	defer cancel()
	return testbed.Await(ctx, k.ear, fits)
}

// cicerone calls a method of vm_cicerone's contract.
func (k *keeper) cicerone(method string, req, resp proto.Message) error {
	return k.callOn(dbus.CiceroneName, dbus.CiceronePath, dbus.CiceroneInterface, method, req, resp)
}

// create makes a container of the image that comes along.
func (k *keeper) create(name string) error {
	var resp ciceronepb.CreateLxdContainerResponse
	if err := k.cicerone("CreateLxdContainer", &ciceronepb.CreateLxdContainerRequest{VmName: termina, ContainerName: name}, &resp); err != nil {
		return err
	}
	if resp.Status != ciceronepb.CreateLxdContainerResponse_CREATING {
		return fmt.Errorf("CreateLxdContainer: %v", &resp)
	}
	end, err := heard(k, func(s *ciceronepb.LxdContainerCreatedSignal) bool { return s.ContainerName == name })
	if err == nil && end.Status != ciceronepb.LxdContainerCreatedSignal_CREATED {
		err = fmt.Errorf("CreateLxdContainer ends with %v", end)
	}
	return err
}

// start starts a container and returns when that is done; its own boot is not.
func (k *keeper) startContainer(name string) error {
	var resp ciceronepb.StartLxdContainerResponse
	if err := k.cicerone("StartLxdContainer", &ciceronepb.StartLxdContainerRequest{VmName: termina, ContainerName: name, Async: true}, &resp); err != nil {
		return err
	}
	end, err := heard(k, func(s *ciceronepb.LxdContainerStartingSignal) bool {
		return s.ContainerName == name && s.Status != ciceronepb.LxdContainerStartingSignal_STARTING
	})
	if err == nil && end.Status != ciceronepb.LxdContainerStartingSignal_STARTED {
		err = fmt.Errorf("StartLxdContainer ends with %v", end)
	}
	return err
}

// running makes our container with its user, unless it is there, and starts it
// unless it runs.
func (k *keeper) running() error {
	if !k.made {
		if err := k.create(ours); err != nil {
			return err
		}
		var user ciceronepb.SetUpLxdContainerUserResponse
		err := k.cicerone("SetUpLxdContainerUser", &ciceronepb.SetUpLxdContainerUserRequest{VmName: termina, ContainerName: ours,
			ContainerUsername: "ada"}, &user)
		if err == nil && user.Status != ciceronepb.SetUpLxdContainerUserResponse_SUCCESS {
			err = fmt.Errorf("SetUpLxdContainerUser: %v", &user)
		}
		if err != nil {
			return err
		}
		k.made = true
	}
	if k.runs {
		return nil
	}
	if err := k.startContainer(ours); err != nil {
		return err
	}
	k.runs = true
	_, err := heard(k, func(s *ciceronepb.ContainerStartedSignal) bool { return s.ContainerName == ours })
	return err
}

// stopped is our container made, and not running.
func (k *keeper) stopped() error {
	// Its first boot does more than those after it.
	if !k.made {
		if err := k.running(); err != nil {
			return err
		}
	}
	if !k.runs {
		return nil
	}
	if _, err := k.root.do("incus stop --force " + ours); err != nil {
		return err
	}
	k.runs = false
	_, err := heard(k, func(s *ciceronepb.ContainerShutdownSignal) bool { return s.ContainerName == ours })
	return err
}

// image is the fingerprint of the image that came along, which Incus has since
// our container was made.
func (k *keeper) image() (string, error) {
	out, err := k.root.do("incus image list --format csv --columns F")
	if err == nil && len(strings.Fields(out)) != 1 {
		err = fmt.Errorf("Incus has other images than the one expected: %q", out)
	}
	return out, err
}

// A rootShell is one of root in the VM, which stays: what it is told costs no
// session.
type rootShell struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func (b *bench) newRootShell() (*rootShell, error) {
	s := &rootShell{cmd: b.Command(b.user, "vsh", "--user", "root", termina, "--", "INCUS_DIR=/mnt/stateful/incus", "bash", "-s")}
	s.cmd.Stderr = os.Stderr
	var err error
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.out = bufio.NewReader(out)
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	_, err = s.do("true")
	if err != nil {
		s.close()
	}
	return s, err
}

func (s *rootShell) close() {
	s.in.Close()
	late := time.AfterFunc(time.Minute, func() { s.cmd.Process.Kill() })
	defer late.Stop()
	s.cmd.Wait()
}

// do runs a command line and returns what it printed.
func (s *rootShell) do(line string) (string, error) {
	const end = "the command has ended with "
	if _, err := fmt.Fprintf(s.in, "{ %s; } </dev/null 2>&1; echo; echo '%s'$?\n", line, end); err != nil {
		return "", err
	}
	late := time.AfterFunc(callTimeout, func() { s.cmd.Process.Kill() })
	defer late.Stop()
	var said strings.Builder
	for {
		l, err := s.out.ReadString('\n')
		if err != nil {
			return said.String(), fmt.Errorf("%s: the shell in the VM ended: %w: %s", line, err, said.String())
		}
		code, ok := strings.CutPrefix(l, end)
		if !ok {
			said.WriteString(l)
			continue
		}
		out := strings.TrimSpace(said.String())
		if strings.TrimSpace(code) != "0" {
			return out, fmt.Errorf("%s: status %s: %s", line, strings.TrimSpace(code), out)
		}
		return out, nil
	}
}

// besideIncus returns what is compared with the incus command: a VM in which
// nothing runs, and the image's fingerprint.
func (o *options) besideIncus(ctx context.Context) (*keeper, string, error) {
	k, err := o.keeper(ctx)
	if err != nil {
		return nil, "", err
	}
	if err := k.stopped(); err != nil {
		return nil, "", err
	}
	fingerprint, err := k.image()
	return k, fingerprint, err
}

// benchCreate measures making containers against the incus command in the same
// guest, with the same image and profile.
func benchCreate(ctx context.Context, o *options, t *table) error {
	k, fingerprint, err := o.besideIncus(ctx)
	if err != nil {
		return err
	}
	n := 0
	made := func(make func(name string) error) func() (float64, error) {
		return func() (float64, error) {
			n++
			name := fmt.Sprintf("made%d", n)
			ms, err := timed(func() error { return make(name) })
			if err == nil {
				_, err = k.root.do("incus delete --force " + name)
			}
			return ms / 1e3, err
		}
	}
	p, err := compare(ctx, o.pairs, made(k.create), made(func(name string) error {
		_, err := k.root.do("incus init " + fingerprint + " " + name)
		return err
	}))
	if err != nil {
		return err
	}
	t.ratio("CreateLxdContainer to `LxdContainerCreated`", "`incus init` in the same guest", "s", p, atMost(1.10))
	return nil
}

// benchStart measures starting them likewise.
func benchStart(ctx context.Context, o *options, t *table) error {
	k, fingerprint, err := o.besideIncus(ctx)
	if err != nil {
		return err
	}
	if _, err := k.root.do("incus init " + fingerprint + " " + theirs); err != nil {
		return err
	}
	// Whether the container has booted when it is killed makes no difference to
	// its next start.
	kill := func(name string, ms float64, err error) (float64, error) {
		if err == nil {
			_, err = k.root.do("incus stop --force " + name)
		}
		return ms / 1e3, err
	}
	p, err := compare(ctx, o.pairs, func() (float64, error) {
		ms, err := timed(func() error { return k.startContainer(ours) })
		return kill(ours, ms, err)
	}, func() (float64, error) {
		ms, err := timed(func() error {
			_, err := k.root.do("incus start " + theirs)
			return err
		})
		return kill(theirs, ms, err)
	})
	if err != nil {
		return err
	}
	// What those have said that were killed so late that they could.
	testbed.All[*ciceronepb.ContainerStartedSignal](k.ear)
	testbed.All[*ciceronepb.ContainerShutdownSignal](k.ear)
	var whole []float64
	for range boots {
		ms, err := timed(k.running)
		if err != nil {
			return err
		}
		whole = append(whole, ms/1e3)
		if err := k.stopped(); err != nil {
			return err
		}
	}
	t.ratio("StartLxdContainer to the last `LxdContainerStarting`", "`incus start` in the same guest", "s", p, atMost(1.10))
	t.figure(fmt.Sprintf("StartLxdContainer to `ContainerStarted`, the container's boot included, %d times", boots), "s", median(whole), none)
	return nil
}
