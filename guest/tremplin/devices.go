package tremplin

import (
	"context"

	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

const (
	noUSB    = "VMs have no USB devices of the host that a container could be given"
	noDevice = "VMs have no microphone and no camera that a container could be given"
)

// AttachUsbToContainer says that there is nothing to attach.
func (s *Server) AttachUsbToContainer(context.Context, *pb.AttachUsbToContainerRequest) (*pb.AttachUsbToContainerResponse, error) {
	return &pb.AttachUsbToContainerResponse{Status: pb.AttachUsbToContainerResponse_FAILED, FailureReason: noUSB}, nil
}

// DetachUsbFromContainer says that nothing is attached.
func (s *Server) DetachUsbFromContainer(context.Context, *pb.DetachUsbFromContainerRequest) (*pb.DetachUsbFromContainerResponse, error) {
	return &pb.DetachUsbFromContainerResponse{Status: pb.DetachUsbFromContainerResponse_FAILED, FailureReason: noUSB}, nil
}

// UpdateContainerDevices says that there are none.
func (s *Server) UpdateContainerDevices(_ context.Context, req *pb.UpdateContainerDevicesRequest) (*pb.UpdateContainerDevicesResponse, error) {
	results := map[string]pb.UpdateContainerDevicesResponse_UpdateResult{}
	for name := range req.Updates {
		results[name] = pb.UpdateContainerDevicesResponse_NO_SUCH_VM_DEVICE
	}
	return &pb.UpdateContainerDevicesResponse{Status: pb.UpdateContainerDevicesResponse_FAILED, FailureReason: noDevice, Results: results}, nil
}
