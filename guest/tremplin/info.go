package tremplin

import (
	"context"
	"encoding/binary"
	"net/netip"

	"github.com/auberge-vm/auberge/guest/tremplin/incus"
	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// GetContainerInfo tells whether a container runs, and its address.
func (s *Server) GetContainerInfo(ctx context.Context, req *pb.GetContainerInfoRequest) (*pb.GetContainerInfoResponse, error) {
	i, missing, err := s.find(ctx, req.ContainerName)
	switch {
	case missing:
		return &pb.GetContainerInfoResponse{Status: pb.GetContainerInfoResponse_NOT_FOUND, FailureReason: clip(err.Error())}, nil
	case err != nil:
		return &pb.GetContainerInfoResponse{Status: pb.GetContainerInfoResponse_FAILED, FailureReason: clip(err.Error())}, nil
	case i.Status == incus.Stopped:
		return &pb.GetContainerInfoResponse{Status: pb.GetContainerInfoResponse_STOPPED}, nil
	}
	state, err := s.incus.State(ctx, req.ContainerName)
	if err != nil {
		return &pb.GetContainerInfoResponse{Status: pb.GetContainerInfoResponse_FAILED, FailureReason: clip(err.Error())}, nil
	}
	resp := &pb.GetContainerInfoResponse{Status: pb.GetContainerInfoResponse_RUNNING}
	if ip, ok := state.IPv4(); ok {
		resp.Ipv4Address = wireOf(ip)
	}
	return resp, nil
}

// wireOf returns an address in network byte order, whatever this machine's.
func wireOf(a netip.Addr) uint32 {
	b := a.As4()
	return binary.LittleEndian.Uint32(b[:])
}
