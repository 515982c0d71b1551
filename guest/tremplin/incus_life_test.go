//go:build incus

package tremplin_test

import (
	"os"
	"testing"

	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

func TestLifeOfAContainer(t *testing.T) {
	c, h, _ := start(t, nil)
	ctx := t.Context()
	await(h, "ready", func(*pb.TremplinStartupInfo) bool { return true })
	if r, err := c.StartLxd(ctx, &pb.StartLxdRequest{}); err != nil || r.Status != pb.StartLxdResponse_STARTING {
		t.Fatal(r, err)
	}
	await(h, "started", func(p *pb.StartLxdProgress) bool { return p.Status == pb.StartLxdProgress_STARTED })
	if r, err := c.StartLxd(ctx, &pb.StartLxdRequest{}); err != nil || r.Status != pb.StartLxdResponse_ALREADY_RUNNING {
		t.Fatal(r, err)
	}
	if r, err := c.CreateContainer(ctx, &pb.CreateContainerRequest{ContainerName: "penguin"}); err != nil || r.Status != pb.CreateContainerResponse_CREATING {
		t.Fatal(r, err)
	}
	if p := await(h, "create ended", func(p *pb.ContainerCreationProgress) bool {
		return p.Status != pb.ContainerCreationProgress_DOWNLOADING
	}); p.Status != pb.ContainerCreationProgress_CREATED {
		t.Fatal(p)
	}
	if r, err := c.SetUpUser(ctx, &pb.SetUpUserRequest{ContainerName: "penguin", ContainerUsername: "alice"}); err != nil || r.Status != pb.SetUpUserResponse_SUCCESS || r.Username != "alice" {
		t.Fatal(r, err)
	}
	if r, err := c.SetUpUser(ctx, &pb.SetUpUserRequest{ContainerName: "penguin", ContainerUsername: "bob"}); err != nil || r.Status != pb.SetUpUserResponse_EXISTS || r.Username != "alice" {
		t.Fatal(r, err)
	}
	if r, err := c.CreateContainer(ctx, &pb.CreateContainerRequest{ContainerName: "penguin"}); err != nil || r.Status != pb.CreateContainerResponse_EXISTS {
		t.Fatal(r, err)
	}
	r, err := c.StartContainer(ctx, &pb.StartContainerRequest{ContainerName: "penguin", Token: "0123456789", HostPublicKey: "ssh-ed25519 AAAA", ContainerPrivateKey: "key"})
	if err != nil || r.Status != pb.StartContainerResponse_STARTING || r.OsRelease.GetId() != "debian" {
		t.Fatal(r, err)
	}
	p := await(h, "start ended", func(p *pb.ContainerStartProgress) bool { return p.Status != pb.ContainerStartProgress_STARTING })
	if os.Getenv("NO_START") == "" && p.Status != pb.ContainerStartProgress_STARTED {
		log, _ := os.ReadFile("/mnt/stateful/incus/logs/penguin/lxc.log")
		t.Fatalf("%v\n%s", p, log)
	}
	i, err := c.GetContainerInfo(ctx, &pb.GetContainerInfoRequest{ContainerName: "penguin"})
	t.Log(i, err)
	g, err := c.GetDebugInfo(ctx, &pb.GetDebugInfoRequest{})
	t.Log(g, err)
	if r, err := c.DeleteContainer(ctx, &pb.DeleteContainerRequest{ContainerName: "penguin"}); err != nil || r.Status != pb.DeleteContainerResponse_DELETING {
		t.Fatal(r, err)
	}
	if p := await(h, "deletion", func(p *pb.ContainerDeletionProgress) bool { return true }); p.Status != pb.ContainerDeletionProgress_DELETED {
		t.Fatal(p)
	}
}
