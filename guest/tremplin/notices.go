package tremplin

import (
	"context"

	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// tell leaves a notice of one kind, or keeps it. A key names notices that the
// next of their kind outdates.
func tell[M proto.Message](o *outbox, keep bool, key, what string, m M,
	call func(pb.TremplinListenerClient, context.Context, M, ...grpc.CallOption) (*pb.EmptyMessage, error)) {
	o.push(notice{keep: keep, key: key, what: what, call: func(ctx context.Context, host pb.TremplinListenerClient) error {
		_, err := call(host, ctx, m)
		return err
	}})
}

// announce tells the host that there is a tremplin, however long it takes.
func (o *outbox) announce() {
	o.push(notice{what: "TremplinReady", forever: true, call: func(ctx context.Context, host pb.TremplinListenerClient) error {
		_, err := host.TremplinReady(ctx, &pb.TremplinStartupInfo{})
		return err
	}})
}

func (o *outbox) startLxd(s pb.StartLxdProgress_Status, reason string) {
	tell(o, true, "", "UpdateStartLxdStatus "+s.String(), &pb.StartLxdProgress{Status: s, FailureReason: clip(reason)}, pb.TremplinListenerClient.UpdateStartLxdStatus)
}

func (o *outbox) create(name string, s pb.ContainerCreationProgress_Status, percent int32, reason string) {
	key := ""
	if s == pb.ContainerCreationProgress_DOWNLOADING {
		key = "create " + name
	}
	tell(o, key == "", key, "UpdateCreateStatus "+s.String(), &pb.ContainerCreationProgress{
		ContainerName: name, Status: s, DownloadProgress: percent, FailureReason: clip(reason),
	}, pb.TremplinListenerClient.UpdateCreateStatus)
}

func (o *outbox) deletion(name string, s pb.ContainerDeletionProgress_Status, reason string) {
	tell(o, true, "", "UpdateDeletionStatus "+s.String(), &pb.ContainerDeletionProgress{ContainerName: name, Status: s, FailureReason: clip(reason)}, pb.TremplinListenerClient.UpdateDeletionStatus)
}

func (o *outbox) start(name string, s pb.ContainerStartProgress_Status, reason string) {
	key := ""
	if s == pb.ContainerStartProgress_STARTING {
		key = "start " + name
	}
	tell(o, key == "", key, "UpdateStartStatus "+s.String(), &pb.ContainerStartProgress{ContainerName: name, Status: s, FailureReason: clip(reason)}, pb.TremplinListenerClient.UpdateStartStatus)
}

func (o *outbox) stop(name string, s pb.ContainerStopProgress_Status, reason string) {
	tell(o, s != pb.ContainerStopProgress_STOPPING, "", "UpdateStopStatus "+s.String(), &pb.ContainerStopProgress{ContainerName: name, Status: s, FailureReason: clip(reason)}, pb.TremplinListenerClient.UpdateStopStatus)
}

func (o *outbox) export(p *pb.ContainerExportProgress) {
	key := ""
	if p.Status == pb.ContainerExportProgress_EXPORTING_STREAMING {
		key = "export " + p.ContainerName
	}
	p.FailureReason = clip(p.FailureReason)
	final := p.Status == pb.ContainerExportProgress_DONE || p.Status == pb.ContainerExportProgress_FAILED || p.Status == pb.ContainerExportProgress_CANCELLED
	tell(o, final, key, "UpdateExportStatus "+p.Status.String(), p, pb.TremplinListenerClient.UpdateExportStatus)
}

func (o *outbox) imported(p *pb.ContainerImportProgress) {
	key := ""
	if p.Status == pb.ContainerImportProgress_IMPORTING_UPLOAD || p.Status == pb.ContainerImportProgress_IMPORTING_UNPACK {
		key = "import " + p.ContainerName
	}
	p.FailureReason = clip(p.FailureReason)
	tell(o, key == "", key, "UpdateImportStatus "+p.Status.String(), p, pb.TremplinListenerClient.UpdateImportStatus)
}

func (o *outbox) shutdown(name string) {
	tell(o, true, shutdownKey(name), "ContainerShutdown "+name, &pb.ContainerShutdownInfo{ContainerName: name}, pb.TremplinListenerClient.ContainerShutdown)
}

func shutdownKey(name string) string { return "shutdown " + name }

// runs takes the word back that a container has stopped, if the host has not
// heard it yet: it would be taken for one of the container as it is now.
func (o *outbox) runs(name string) { o.recall(shutdownKey(name)) }

func (o *outbox) ports(m *pb.ListeningPortInfo) {
	tell(o, false, "ports", "UpdateListeningPorts", m, pb.TremplinListenerClient.UpdateListeningPorts)
}
