package tremplin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/auberge-vm/auberge/guest/tremplin/archive"
	"github.com/auberge-vm/auberge/guest/tremplin/incus"
	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"github.com/google/renameio/v2"
)

// setUpKey marks a container in Incus' configuration: whether somebody has
// set up its user, or started it. Before that it is of no use, and is made anew.
const setUpKey = "user.auberge.set-up"

// CreateContainer makes a container, in the background.
func (s *Server) CreateContainer(ctx context.Context, req *pb.CreateContainerRequest) (*pb.CreateContainerResponse, error) {
	name := req.ContainerName
	failed := func(err error) (*pb.CreateContainerResponse, error) {
		return &pb.CreateContainerResponse{Status: pb.CreateContainerResponse_FAILED, FailureReason: clip(err.Error())}, nil
	}
	if err := checkName(name); err != nil {
		return failed(err)
	}
	source, err := s.source(req)
	if err != nil {
		return failed(err)
	}
	if s.jobs.is(name, jobCreate) {
		return &pb.CreateContainerResponse{Status: pb.CreateContainerResponse_CREATING}, nil
	}
	// While Incus starts, whether there is such a container turns out later.
	if s.isStarted() {
		if i, missing, err := s.find(ctx, name); err == nil && !isAbandoned(i) {
			return &pb.CreateContainerResponse{Status: pb.CreateContainerResponse_EXISTS}, nil
		} else if err != nil && !missing {
			return failed(err)
		}
	}
	err = s.jobs.run(name, jobCreate, func(ctx context.Context) {
		err := s.create(ctx, name, source)
		switch {
		case err == nil:
			s.host.create(name, pb.ContainerCreationProgress_CREATED, 100, "")
			return
		case wasCancelled(ctx):
			s.host.create(name, pb.ContainerCreationProgress_CANCELLED, 0, "the creation was cancelled")
		case errors.Is(err, errDownloadIdle):
			s.host.create(name, pb.ContainerCreationProgress_DOWNLOAD_TIMED_OUT, 0, err.Error())
		default:
			s.host.create(name, pb.ContainerCreationProgress_FAILED, 0, err.Error())
		}
		s.log.Error("container not created", "container", name, "err", err)
	})
	if err != nil {
		return failed(err)
	}
	return &pb.CreateContainerResponse{Status: pb.CreateContainerResponse_CREATING}, nil
}

// isAbandoned tells whether a container was created and neither set up nor
// started.
func isAbandoned(i incus.Instance) bool {
	return i.Config[setUpKey] == "no" && i.Status == incus.Stopped
}

// create makes a container under another name and renames it at the end, so
// that nobody sees it before.
func (s *Server) create(ctx context.Context, name string, source imageSource) error {
	begun := time.Now()
	// Incus is started for this when it must be.
	old, missing, err := s.find(ctx, name)
	switch {
	case err == nil && !isAbandoned(old):
		return nil // which is what was asked for
	case err == nil:
		s.log.Info("a container that was never set up is made anew", "container", name)
		if err := s.incus.Delete(ctx, name); err != nil {
			return err
		}
	case !missing:
		return err
	}
	image, release, err := source.fetch(ctx, func(percent int32) {
		s.host.create(name, pb.ContainerCreationProgress_DOWNLOADING, percent, "")
	})
	if err != nil {
		return err
	}
	defer release()
	temp := tempName("create")
	fetched := time.Now()
	if err := s.unpack(ctx, temp, image, map[string]string{setUpKey: "no"}, nil); err != nil {
		return err
	}
	unpacked := time.Now()
	if _, shipped := source.(shippedImage); !shipped {
		err = s.dropTemplates(temp)
	}
	if err == nil {
		err = s.finish(ctx, temp, name)
	}
	if err != nil {
		s.discardNow(temp)
		return err
	}
	const exact = time.Millisecond
	s.log.Info("container created", "container", name, "after", time.Since(begun).Round(exact),
		"image", fetched.Sub(begun).Round(exact), "unpacking", unpacked.Sub(fetched).Round(exact))
	return nil
}

// dropTemplates keeps Incus from writing files into a container as its image
// says, which Incus does as root of the VM and through the container's links.
func (s *Server) dropTemplates(name string) error {
	path := s.cfg.containerDir(name) + "/metadata.yaml"
	data, err := readAtMost(path, 1<<20)
	if err == nil {
		data, err = archive.WithoutTemplates(data)
	}
	if err == nil {
		err = renameio.WriteFile(path, data, 0o644)
	}
	if err != nil {
		return fmt.Errorf("the image's metadata.yaml: %w", err)
	}
	return nil
}

// readAtMost reads the beginning of a file.
func readAtMost(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

// unpack makes a container of an image. Nothing remains when it fails.
func (s *Server) unpack(ctx context.Context, temp, image string, config map[string]string, progress func(incus.Operation) error) error {
	op, err := s.incus.CreateInstance(ctx, temp, image, config)
	if err == nil && progress == nil {
		_, err = s.incus.Wait(ctx, op)
	} else if err == nil {
		_, err = s.incus.Follow(ctx, op, progress)
	}
	if err == nil {
		err = s.inspect(temp)
	}
	if err != nil {
		s.discardNow(temp)
	}
	return err
}

// inspect refuses a container whose parts are not what Incus takes them for.
func (s *Server) inspect(name string) error {
	dir := s.cfg.containerDir(name)
	for _, part := range []struct {
		name   string
		needed bool
		kind   os.FileMode
	}{{"rootfs", true, os.ModeDir}, {"templates", false, os.ModeDir}, {"metadata.yaml", true, 0}, {"backup.yaml", false, 0}} {
		info, err := os.Lstat(dir + "/" + part.name)
		switch {
		case err != nil && !part.needed && errors.Is(err, os.ErrNotExist):
		case err != nil:
			return fmt.Errorf("the image has no %s: %w", part.name, err)
		case info.Mode().Type() != part.kind:
			return fmt.Errorf("the image's %s is a %s", part.name, info.Mode().Type())
		}
	}
	return nil
}

// finish gives a new container its name.
func (s *Server) finish(ctx context.Context, temp, name string) error {
	i, err := s.incus.Instance(ctx, temp)
	if err != nil {
		return err
	}
	root, err := s.files(i)
	if err != nil {
		return err
	}
	// What made the image, or what was exported, may have had another name.
	if root.Exists("/etc/hostname") {
		if err := root.WriteFile("/etc/hostname", []byte(name+"\n"), 0o644, 0, 0); err != nil {
			s.log.Warn("the container keeps its image's host name", "container", name, "err", err)
		}
	}
	root.Close()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return s.incus.Rename(ctx, temp, name)
}
