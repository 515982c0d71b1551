package tremplin

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/auberge-vm/auberge/guest/tremplin/incus"
	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// StopContainer kills what runs in a container, in the background.
func (s *Server) StopContainer(ctx context.Context, req *pb.StopContainerRequest) (*pb.StopContainerResponse, error) {
	name := req.ContainerName
	resp := func(state pb.StopContainerResponse_Status, err error) (*pb.StopContainerResponse, error) {
		r := &pb.StopContainerResponse{Status: state}
		if err != nil {
			r.FailureReason = clip(err.Error())
		}
		return r, nil
	}
	i, missing, err := s.find(ctx, name)
	switch {
	case missing:
		return resp(pb.StopContainerResponse_DOES_NOT_EXIST, err)
	case err != nil:
		return resp(pb.StopContainerResponse_FAILED, err)
	case s.jobs.is(name, jobStop):
		return resp(pb.StopContainerResponse_STOPPING, nil)
	}
	// A container that is starting is stopped too.
	if started := s.jobs.cancelled(name, jobStart); started != nil {
		select {
		case <-started:
		case <-ctx.Done():
			return resp(pb.StopContainerResponse_FAILED, ctx.Err())
		}
		if i, _, err = s.find(ctx, name); err != nil {
			return resp(pb.StopContainerResponse_FAILED, err)
		}
	}
	if i.Status == incus.Stopped {
		return resp(pb.StopContainerResponse_STOPPED, nil)
	}
	err = s.jobs.run(name, jobStop, func(ctx context.Context) {
		s.host.stop(name, pb.ContainerStopProgress_STOPPING, "")
		err := s.stopNow(ctx, name)
		switch {
		case err == nil:
			s.host.stop(name, pb.ContainerStopProgress_STOPPED, "")
		case wasCancelled(ctx):
			s.host.stop(name, pb.ContainerStopProgress_CANCELLED, "the stop was cancelled")
		default:
			s.log.Error("container not stopped", "container", name, "err", err)
			s.host.stop(name, pb.ContainerStopProgress_FAILED, err.Error())
		}
	})
	if err != nil {
		return resp(pb.StopContainerResponse_FAILED, err)
	}
	return resp(pb.StopContainerResponse_STOPPING, nil)
}

// stopNow stops a container; one that has stopped meanwhile is none less.
func (s *Server) stopNow(ctx context.Context, name string) error {
	err := onceFree(ctx, func() error { return s.incus.Stop(ctx, name) })
	if err == nil {
		return nil
	}
	if i, again := s.incus.Instance(ctx, name); again == nil && i.Status == incus.Stopped {
		return nil
	}
	return err
}

// DeleteContainer removes a container, in the background, and ends its
// creation if that is under way.
func (s *Server) DeleteContainer(ctx context.Context, req *pb.DeleteContainerRequest) (*pb.DeleteContainerResponse, error) {
	name := req.ContainerName
	resp := func(state pb.DeleteContainerResponse_Status, err error) (*pb.DeleteContainerResponse, error) {
		r := &pb.DeleteContainerResponse{Status: state}
		if err != nil {
			r.FailureReason = clip(err.Error())
		}
		return r, nil
	}
	if created := s.jobs.cancelled(name, jobCreate); created != nil {
		select {
		case <-created:
		case <-ctx.Done():
			return resp(pb.DeleteContainerResponse_FAILED, ctx.Err())
		}
	}
	_, missing, err := s.find(ctx, name)
	switch {
	case missing:
		return resp(pb.DeleteContainerResponse_DOES_NOT_EXIST, err)
	case err != nil:
		return resp(pb.DeleteContainerResponse_FAILED, err)
	case s.jobs.is(name, jobDelete):
		return resp(pb.DeleteContainerResponse_DELETING, nil)
	}
	err = s.jobs.run(name, jobDelete, func(ctx context.Context) {
		err := s.deleteNow(ctx, name)
		switch {
		case err == nil:
			s.log.Info("container deleted", "container", name)
			s.host.deletion(name, pb.ContainerDeletionProgress_DELETED, "")
		case wasCancelled(ctx):
			s.host.deletion(name, pb.ContainerDeletionProgress_CANCELLED, "the deletion was cancelled")
		default:
			s.log.Error("container not deleted", "container", name, "err", err)
			s.host.deletion(name, pb.ContainerDeletionProgress_FAILED, err.Error())
		}
	})
	if err != nil {
		return resp(pb.DeleteContainerResponse_FAILED, err)
	}
	return resp(pb.DeleteContainerResponse_DELETING, nil)
}

// busyWait is how long a deletion waits for what Incus does with the container.
const busyWait = 5 * time.Minute

func (s *Server) deleteNow(ctx context.Context, name string) error {
	free, cancel := context.WithTimeout(ctx, busyWait)
	defer cancel()
	if err := s.removeOnceFree(free, name); err != nil && !incus.IsNotFound(err) {
		return err
	}
	return removeIfThere(s.tokenPath(name))
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
