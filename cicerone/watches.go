package cicerone

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/auberge-vm/auberge/guestlink/garcon"
	"github.com/auberge-vm/auberge/guestlink/wire"
	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	cpb "github.com/auberge-vm/auberge/protos/containerpb"
)

// watchPath accepts a path beneath the user's home.
func watchPath(p string) error {
	if p == "" || len(p) > maxArgument || path.IsAbs(p) || strings.ContainsRune(p, 0) {
		return fmt.Errorf("%w: path %q must be relative to the user's home", ErrInvalid, wire.Text(p, 200))
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return fmt.Errorf("%w: path %q leads out of the user's home", ErrInvalid, wire.Text(p, 200))
		}
	}
	return nil
}

// AddFileWatch has changes in a directory reported.
func (s *Service) AddFileWatch(ctx context.Context, sub policy.Subject, req *pb.AddFileWatchRequest) (*pb.AddFileWatchResponse, error) {
	if err := checkContainer(req.GetContainerName()); err != nil {
		return nil, err
	}
	if err := watchPath(req.GetPath()); err != nil {
		return nil, err
	}
	v, c, client, err := s.agent(sub, req.GetVmName(), req.GetContainerName())
	if err != nil {
		return nil, err
	}
	had, err := v.noteWatch(c, req.GetPath())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := client.AddFileWatch(ctx, &cpb.AddFileWatchRequest{Path: req.GetPath()})
	if err == nil && r.GetStatus() == cpb.AddFileWatchResponse_SUCCEEDED {
		return &pb.AddFileWatchResponse{Status: pb.AddFileWatchResponse_SUCCEEDED}, nil
	}
	if !had {
		v.dropWatch(c, req.GetPath())
	}
	if err != nil {
		return nil, wire.Explain("watch a directory of the container", err)
	}
	return &pb.AddFileWatchResponse{Status: pb.AddFileWatchResponse_FAILED, FailureReason: wire.Words(r.GetFailureReason())}, nil
}

// RemoveFileWatch ends AddFileWatch.
func (s *Service) RemoveFileWatch(ctx context.Context, sub policy.Subject, req *pb.RemoveFileWatchRequest) (*pb.RemoveFileWatchResponse, error) {
	if err := checkContainer(req.GetContainerName()); err != nil {
		return nil, err
	}
	if err := watchPath(req.GetPath()); err != nil {
		return nil, err
	}
	v, c, client, err := s.agent(sub, req.GetVmName(), req.GetContainerName())
	if err != nil {
		return nil, err
	}
	v.dropWatch(c, req.GetPath())
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := client.RemoveFileWatch(ctx, &cpb.RemoveFileWatchRequest{Path: req.GetPath()})
	if err != nil {
		return nil, wire.Explain("stop watching a directory of the container", err)
	}
	resp := &pb.RemoveFileWatchResponse{Status: pb.RemoveFileWatchResponse_FAILED, FailureReason: wire.Words(r.GetFailureReason())}
	if r.GetStatus() == cpb.RemoveFileWatchResponse_SUCCEEDED {
		resp.Status = pb.RemoveFileWatchResponse_SUCCEEDED
	}
	return resp, nil
}

// noteWatch remembers a watch, which may be triggered before the agent's answer
// is here, and says whether it was known.
func (v *vm) noteWatch(c *container, path string) (had bool, err error) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	if c.watches[path] {
		return true, nil
	}
	bytes := len(path)
	for p := range c.watches {
		bytes += len(p)
	}
	if len(c.watches) >= maxWatches || bytes > maxWatchBytes {
		return false, fmt.Errorf("container %q has %d watches, and may have %d with %d bytes of paths", c.name, len(c.watches), maxWatches, maxWatchBytes)
	}
	c.watches[path] = true
	v.saveSoon()
	return false, nil
}

func (v *vm) dropWatch(c *container, path string) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	delete(c.watches, path)
	v.saveSoon()
}

// watchAgain gives an agent that has reported what it was to watch: it may be
// another one than was asked, after one that ended without a word.
func (v *vm) watchAgain(c *container, client *garcon.Client) {
	v.s.mu.Lock()
	paths := slices.Sorted(maps.Keys(c.watches))
	v.s.mu.Unlock()
	for _, path := range paths {
		if !v.stillWatched(c, client, path) {
			continue
		}
		if err := v.watchOnce(c, client, path); err != nil {
			v.log.Warn("a directory of a container is not watched any more", "container", c.name, "path", path, "err", err)
		}
	}
}

// stillWatched says whether this agent is the container's and has to watch a
// path.
func (v *vm) stillWatched(c *container, client *garcon.Client, path string) bool {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	return c.garcon == client && c.watches[path]
}

func (v *vm) watchOnce(c *container, client *garcon.Client, path string) error {
	ctx, cancel := context.WithTimeout(v.ctx, callTimeout)
	defer cancel()
	r, err := client.AddFileWatch(ctx, &cpb.AddFileWatchRequest{Path: path})
	if err != nil { // the next agent of this container gets it
		return wire.Explain("watch a directory of the container", err)
	}
	if r.GetStatus() == cpb.AddFileWatchResponse_SUCCEEDED {
		if !v.stillWatched(c, client, path) { // any more
			client.RemoveFileWatch(ctx, &cpb.RemoveFileWatchRequest{Path: path})
		}
		return nil
	}
	if v.stillWatched(c, client, path) {
		v.dropWatch(c, path)
	}
	return fmt.Errorf("the container says: %s", wire.Words(r.GetFailureReason()))
}
