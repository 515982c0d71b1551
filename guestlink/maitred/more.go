package maitred

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/auberge-vm/auberge/guestlink"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
)

var (
	_ guestlink.UserManager    = (*Link)(nil)
	_ guestlink.StorageManager = (*Link)(nil)
)

// SetTimezone implements guestlink.Agent.
func (k *Link) SetTimezone(ctx context.Context, name string) error {
	_, err := k.client.SetTimezone(ctx, &pb.SetTimezoneRequest{TimezoneName: name})
	return explain("set the guest's time zone", err)
}

// HostNetworkChanged implements guestlink.Agent.
func (k *Link) HostNetworkChanged(ctx context.Context) error {
	_, err := k.client.OnHostNetworkChanged(ctx, &pb.EmptyMessage{})
	return explain("tell the guest of another network", err)
}

// PrepareToSuspend implements guestlink.Agent.
func (k *Link) PrepareToSuspend(ctx context.Context) error {
	_, err := k.client.PrepareToSuspend(ctx, &pb.EmptyMessage{})
	return explain("prepare the guest for being suspended", err)
}

// SetUpUser implements guestlink.UserManager.
func (k *Link) SetUpUser(ctx context.Context, u guestlink.User) (string, error) {
	r, err := k.client.SetUpUser(ctx, &pb.SetUpUserRequest{Username: u.Name, Uid: u.UID, GroupNames: u.Groups})
	if err != nil {
		return "", explain("set up a user in the guest", err)
	}
	if !r.Success {
		return "", fmt.Errorf("set up a user in the guest: the guest says: %s", words(r.FailureReason))
	}
	return words(r.Username), nil
}

// ConfigureContainerGuest implements guestlink.UserManager.
func (k *Link) ConfigureContainerGuest(ctx context.Context, token, user string) error {
	_, err := k.client.ConfigureContainerGuest(ctx, &pb.ConfigureContainerGuestRequest{ContainerToken: token, VmUsername: user})
	return explain("hand the guest its token", err)
}

// UpdateStorageBalloon implements guestlink.StorageManager.
func (k *Link) UpdateStorageBalloon(ctx context.Context, free int64, state guestlink.DiskSpace) error {
	const what = "tell the guest how much space the host has"
	r, err := k.client.UpdateStorageBalloon(ctx, &pb.UpdateStorageBalloonRequest{
		State: pb.StatefulDiskSpaceState(state), FreeSpaceBytes: free})
	if err != nil {
		return explain(what, err)
	}
	if r.Result != pb.UpdateStorageBalloonResult_SUCCESS {
		return errors.New(what + ": the guest cannot set space aside")
	}
	return nil
}

// ResizeFilesystem implements guestlink.StorageManager.
func (k *Link) ResizeFilesystem(ctx context.Context, size uint64) error {
	const what = "resize the guest's file system"
	r, err := k.client.ResizeFilesystem(ctx, &pb.ResizeFilesystemRequest{Size: size})
	if err != nil {
		return explain(what, err)
	}
	switch r.Status {
	case pb.ResizeFilesystemResponse_STARTED:
		return nil
	case pb.ResizeFilesystemResponse_ALREADY_IN_PROGRESS:
		return errors.New(what + ": it is being resized already")
	}
	return errors.New(what + ": the guest cannot; its log tells why")
}

// ResizeStatus implements guestlink.StorageManager.
func (k *Link) ResizeStatus(ctx context.Context) (running bool, size uint64, err error) {
	r, err := k.client.GetResizeStatus(ctx, &pb.EmptyMessage{})
	if err != nil {
		return false, 0, explain("ask how far the file system's resizing is", err)
	}
	return r.ResizeInProgress, r.CurrentSize, nil
}

// MinimumSize implements guestlink.StorageManager.
func (k *Link) MinimumSize(ctx context.Context) (uint64, error) {
	r, err := k.client.GetResizeBounds(ctx, &pb.EmptyMessage{})
	if err != nil {
		return 0, explain("ask for the file system's smallest size", err)
	}
	return r.MinimumSize, nil
}

// AvailableSpace implements guestlink.StorageManager.
func (k *Link) AvailableSpace(ctx context.Context) (uint64, error) {
	r, err := k.client.GetAvailableSpace(ctx, &pb.EmptyMessage{})
	if err != nil {
		return 0, explain("ask for the file system's free space", err)
	}
	return r.AvailableSpace, nil
}

// An Option changes a Link.
type Option func(*Link)

// WithInstallListener has f hear what a guest says that installs itself. A
// guest that says more than a few words a second is made to wait.
func WithInstallListener(f func(guestlink.InstallState)) Option {
	return func(k *Link) { k.install = f }
}

// WithObserver has f told of every call to the guest when it has ended.
func WithObserver(f func(guestlink.Call)) Option {
	return func(k *Link) { k.conn.Observe = f }
}

// installPause is the least time between two words of a guest that installs
// itself.
const installPause = 100 * time.Millisecond

// VmInstallStatus is passed on.
func (s startupListener) VmInstallStatus(ctx context.Context, st *pb.VmInstallState) (*pb.EmptyMessage, error) {
	if s.link.install == nil {
		return &pb.EmptyMessage{}, nil
	}
	select {
	case s.link.installTurn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-s.link.installTurn }()
	s.link.install(guestlink.InstallState{State: int32(st.State), Step: int32(st.InProgressStep),
		Percent: min(max(st.InProgressPercent, 0), 100), Reason: words(st.FailedReason)})
	pause := time.NewTimer(installPause)
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-ctx.Done():
	}
	return &pb.EmptyMessage{}, nil
}
