package garcon

import (
	"context"

	"github.com/auberge-vm/auberge/guest/garcon/hostcalls"
	"github.com/auberge-vm/auberge/guest/garcon/packagekit"
	pb "github.com/auberge-vm/auberge/protos/containerpb"
)

// notices puts what the parts report into the queue for the host, so that it
// arrives in order.
type notices struct {
	host  *hostcalls.Client
	queue *hostcalls.Queue
}

// packageNotices is the face for installations and removals.
type packageNotices struct{ notices }

func (n packageNotices) Progress(op packagekit.Operation, phase packagekit.Phase, percent uint32) {
	if op.Removes {
		n.uninstall("progress", &pb.UninstallPackageProgressInfo{
			Status: pb.UninstallPackageProgressInfo_UNINSTALLING, ProgressPercent: percent,
		})
		return
	}
	status, key := pb.InstallLinuxPackageProgressInfo_DOWNLOADING, "download"
	if phase == packagekit.Installing {
		status, key = pb.InstallLinuxPackageProgressInfo_INSTALLING, "install"
	}
	n.install(key, &pb.InstallLinuxPackageProgressInfo{
		Status: status, ProgressPercent: percent, CommandUuid: op.UUID,
	})
}

func (n packageNotices) Done(op packagekit.Operation, err error) {
	if op.Removes {
		m := &pb.UninstallPackageProgressInfo{Status: pb.UninstallPackageProgressInfo_SUCCEEDED, ProgressPercent: 100}
		if err != nil {
			m = &pb.UninstallPackageProgressInfo{Status: pb.UninstallPackageProgressInfo_FAILED, FailureDetails: clip(err.Error())}
		}
		n.uninstall("", m)
		return
	}
	m := &pb.InstallLinuxPackageProgressInfo{Status: pb.InstallLinuxPackageProgressInfo_SUCCEEDED, ProgressPercent: 100}
	if err != nil {
		m = &pb.InstallLinuxPackageProgressInfo{Status: pb.InstallLinuxPackageProgressInfo_FAILED, FailureDetails: clip(err.Error())}
	}
	m.CommandUuid = op.UUID
	n.install("", m)
}

// install queues a message; one without a key is the last.
func (n notices) install(key string, m *pb.InstallLinuxPackageProgressInfo) {
	if key != "" {
		key = "package " + key + " " + m.CommandUuid
	}
	n.queue.Push(hostcalls.Notice{
		Name: "InstallLinuxPackageProgress", Key: key, Keep: key == "",
		Send: func(ctx context.Context) error { return n.host.InstallLinuxPackageProgress(ctx, m) },
	})
}

func (n notices) uninstall(key string, m *pb.UninstallPackageProgressInfo) {
	if key != "" {
		key = "package removal " + key
	}
	n.queue.Push(hostcalls.Notice{
		Name: "UninstallPackageProgress", Key: key, Keep: key == "",
		Send: func(ctx context.Context) error { return n.host.UninstallPackageProgress(ctx, m) },
	})
}

// playbookNotices is the face for playbooks.
type playbookNotices struct{ notices }

func (n playbookNotices) Lines(lines []string) {
	n.playbook(false, &pb.ApplyAnsiblePlaybookProgressInfo{
		Status: pb.ApplyAnsiblePlaybookProgressInfo_IN_PROGRESS, StatusString: lines,
	})
}

func (n playbookNotices) Done(err error) {
	m := &pb.ApplyAnsiblePlaybookProgressInfo{Status: pb.ApplyAnsiblePlaybookProgressInfo_SUCCEEDED}
	if err != nil {
		m = &pb.ApplyAnsiblePlaybookProgressInfo{Status: pb.ApplyAnsiblePlaybookProgressInfo_FAILED, FailureDetails: clip(err.Error())}
	}
	n.playbook(true, m)
}

func (n notices) playbook(last bool, m *pb.ApplyAnsiblePlaybookProgressInfo) {
	n.queue.Push(hostcalls.Notice{
		Name: "ApplyAnsiblePlaybookProgress", Keep: last,
		Send: func(ctx context.Context) error { return n.host.ApplyAnsiblePlaybookProgress(ctx, m) },
	})
}

func (n notices) fileChanged(path string) {
	m := &pb.FileWatchTriggeredInfo{Path: path}
	n.queue.Push(hostcalls.Notice{
		Name: "FileWatchTriggered", Key: "file " + path,
		Send: func(ctx context.Context) error { return n.host.FileWatchTriggered(ctx, m) },
	})
}

func (n notices) lowSpace(free uint64) {
	m := &pb.LowDiskSpaceTriggeredInfo{FreeBytes: free}
	n.queue.Push(hostcalls.Notice{
		Name: "LowDiskSpaceTriggered", Key: "low disk space",
		Send: func(ctx context.Context) error { return n.host.LowDiskSpaceTriggered(ctx, m) },
	})
}
