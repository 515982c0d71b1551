package concierge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/user"
	"regexp"
	"strconv"
	"time"

	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

const (
	// containerPatience is how long a container that runs already may take to
	// be found so.
	containerPatience = 300 * time.Millisecond
	// containerTimeout bounds a start: an image may have to be fetched for it.
	containerTimeout = 10*time.Minute + 10*time.Second
	// maxContainerStarts is how many containers of a VM are started at once.
	maxContainerStarts = 16
)

// errVMEnded ends the start of a container whose VM has ended.
var errVMEnded = errors.New("the VM has ended, or is about to")

// StartContainer starts a container of a running VM, which is made when there
// is none. It returns when that runs or fails at once, and otherwise when it
// has begun: exactly one signal tells how it ends.
func (s *Service) StartContainer(ctx context.Context, sub policy.Subject, req *pb.StartContainerRequest) (*pb.StartContainerResponse, error) {
	container, err := containerOf(req.ContainerName)
	if err != nil {
		return nil, err
	}
	v, _, err := s.up(sub, req.VmName)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	tremplin := v.tremplin
	v.mu.Unlock()
	switch {
	case s.cfg.Containers == nil:
		return nil, errors.New("this service runs without vm_cicerone, which starts containers")
	case tremplin == tremplinNone:
		return nil, fmt.Errorf("VM %q was not started for containers: start it with start_termina from an image that has them", req.VmName)
	}
	// Whoever starts a container may ask for its keys next.
	if _, _, err := s.makeKeys(ctx, v, container); err != nil {
		return nil, err
	}
	username := cmp.Or(req.ContainerUsername, userNameOf(v.key.uid))
	begun := &pb.StartContainerResponse{Success: true, Status: pb.ContainerStatus_CONTAINER_STATUS_STARTING}
	start, mine, err := s.beginContainer(v, container, username)
	if err != nil {
		return nil, err
	}
	if !mine {
		return begun, nil // the signal at its end is for both
	}
	patience := time.NewTimer(containerPatience)
	defer patience.Stop()
	select {
	case <-start.ended:
	case <-patience.C:
	case <-ctx.Done():
	}
	if !start.answer() {
		return begun, nil
	}
	if start.err != nil {
		return nil, start.err
	}
	return &pb.StartContainerResponse{Success: true, Status: pb.ContainerStatus_CONTAINER_STATUS_RUNNING}, nil
}

// plainUserName is a name that every Linux takes.
var plainUserName = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,30}$`)

// userNameOf is what a container's user is called unless somebody says so: as
// its owner is on the host, whose name may be one of a directory service's.
func userNameOf(uid uint32) string {
	u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	if err != nil || uid == 0 || !plainUserName.MatchString(u.Username) {
		return "user"
	}
	return u.Username
}

// A containerStart is one start of a container in progress.
type containerStart struct {
	ended chan struct{} // closed when err is set
	err   error
	// told holds one until somebody has decided who tells of the end: whoever
	// asked is told in the answer if it has ended by then.
	told chan bool
	// joined: others asked meanwhile, who were told to wait for a signal;
	// guarded by the service's lock.
	joined bool
}

// answer says whether the start has ended, so that the caller's answer tells of
// it, and nobody else will.
func (c *containerStart) answer() bool {
	select {
	case <-c.ended:
		c.told <- true
		return true
	default:
		c.told <- false
		return false
	}
}

// beginContainer begins to start a container, unless that is being done.
func (s *Service) beginContainer(v *vm, container, username string) (start *containerStart, mine bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, false, errors.New("the service is shutting down")
	}
	if running := v.containerStarts[container]; running != nil {
		running.joined = true
		return nil, false, nil
	}
	if len(v.containerStarts) >= maxContainerStarts {
		return nil, false, fmt.Errorf("%d containers of VM %q are being started; wait for one", maxContainerStarts, v.key.name)
	}
	if v.containerStarts == nil {
		v.containerStarts = map[string]*containerStart{}
	}
	start = &containerStart{ended: make(chan struct{}), told: make(chan bool, 1)}
	v.containerStarts[container] = start
	s.running.Go(func() { s.ensureContainer(v, container, username, start) })
	return start, true, nil
}

// awaitTremplin waits until a VM's containers can be managed, which whoever
// asks for one right after the VM's start does not have to.
func (s *Service) awaitTremplin(ctx context.Context, v *vm) error {
	v.mu.Lock()
	ready := v.tremplin == tremplinReady
	v.mu.Unlock()
	if ready {
		return nil
	}
	// It hears that they can.
	if err := s.cfg.Containers.Start(ctx); err != nil {
		return err
	}
	t := time.NewTimer(terminaTimeout)
	defer t.Stop()
	select {
	case <-v.containersUp:
		return nil
	case <-t.C:
		return fmt.Errorf("the VM's manager of containers has not reported within %v", terminaTimeout)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *Service) ensureContainer(v *vm, container, username string, start *containerStart) {
	ctx, cancel := context.WithCancelCause(s.quit)
	defer cancel(nil)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-v.stopping:
		case <-v.machine.Done():
		case <-ctx.Done():
			return
		}
		cancel(errVMEnded)
	}()
	err := within(ctx, containerTimeout, func(ctx context.Context) error {
		if err := s.awaitTremplin(ctx, v); err != nil {
			return err
		}
		return s.cfg.Containers.EnsureContainer(ctx, v.cid, container, username)
	})
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		err = fmt.Errorf("start container %q of VM %q: %w", container, v.key.name, err)
	}
	cancel(nil)
	<-watched
	start.err = err
	close(start.ended)
	answered := <-start.told
	s.mu.Lock()
	delete(v.containerStarts, container)
	joined := start.joined
	s.mu.Unlock()
	if answered && !joined {
		return
	}
	signal := "ContainerStarted"
	if err != nil {
		signal = "ContainerStartupFailed"
		v.log.Warn("a container did not start", "container", container, "err", err)
	}
	s.emit(v, signal, &pb.ContainerStartedSignal{VmName: v.key.name, ContainerName: container, OwnerId: v.owner.Word})
}
