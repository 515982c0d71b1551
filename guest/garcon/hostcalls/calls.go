package hostcalls

import (
	"context"

	pb "github.com/auberge-vm/auberge/protos/containerpb"
)

// One method per rpc. Each puts the token into the request, which is the
// caller's no more.

// ContainerReady says that the agent listens. The host dials back before it answers.
func (c *Client) ContainerReady(ctx context.Context, req *pb.ContainerStartupInfo) error {
	req.Token = c.token
	return tell(ctx, c, desktopTime, pb.ContainerListenerClient.ContainerReady, req)
}

// ContainerShutdown says that the agent ends, and the container with it.
func (c *Client) ContainerShutdown(ctx context.Context, req *pb.ContainerShutdownInfo) error {
	req.Token = c.token
	return tell(ctx, c, callTime, pb.ContainerListenerClient.ContainerShutdown, req)
}

// UpdateApplicationList gives the whole list of applications.
func (c *Client) UpdateApplicationList(ctx context.Context, req *pb.UpdateApplicationListRequest) error {
	req.Token = c.token
	return tell(ctx, c, desktopTime, pb.ContainerListenerClient.UpdateApplicationList, req)
}

// PendingUpdateApplicationListCalls says how many lists are still to come.
func (c *Client) PendingUpdateApplicationListCalls(ctx context.Context, req *pb.PendingAppListUpdateCount) error {
	req.Token = c.token
	return tell(ctx, c, callTime, pb.ContainerListenerClient.PendingUpdateApplicationListCalls, req)
}

// OpenUrl opens a URL on the desktop.
func (c *Client) OpenUrl(ctx context.Context, req *pb.OpenUrlRequest) error {
	req.Token = c.token
	return tell(ctx, c, desktopTime, pb.ContainerListenerClient.OpenUrl, req)
}

// InstallLinuxPackageProgress tells how an installation goes on.
func (c *Client) InstallLinuxPackageProgress(ctx context.Context, req *pb.InstallLinuxPackageProgressInfo) error {
	req.Token = c.token
	return tell(ctx, c, callTime, pb.ContainerListenerClient.InstallLinuxPackageProgress, req)
}

// UninstallPackageProgress tells how a removal goes on.
func (c *Client) UninstallPackageProgress(ctx context.Context, req *pb.UninstallPackageProgressInfo) error {
	req.Token = c.token
	return tell(ctx, c, callTime, pb.ContainerListenerClient.UninstallPackageProgress, req)
}

// ApplyAnsiblePlaybookProgress tells how a playbook goes on.
func (c *Client) ApplyAnsiblePlaybookProgress(ctx context.Context, req *pb.ApplyAnsiblePlaybookProgressInfo) error {
	req.Token = c.token
	return tell(ctx, c, callTime, pb.ContainerListenerClient.ApplyAnsiblePlaybookProgress, req)
}

// OpenTerminal opens a terminal on the desktop.
func (c *Client) OpenTerminal(ctx context.Context, req *pb.OpenTerminalRequest) error {
	req.Token = c.token
	return tell(ctx, c, desktopTime, pb.ContainerListenerClient.OpenTerminal, req)
}

// UpdateMimeTypes gives the whole table of MIME types.
func (c *Client) UpdateMimeTypes(ctx context.Context, req *pb.UpdateMimeTypesRequest) error {
	req.Token = c.token
	return tell(ctx, c, desktopTime, pb.ContainerListenerClient.UpdateMimeTypes, req)
}

// FileWatchTriggered says that a watched directory changed.
func (c *Client) FileWatchTriggered(ctx context.Context, req *pb.FileWatchTriggeredInfo) error {
	req.Token = c.token
	return tell(ctx, c, callTime, pb.ContainerListenerClient.FileWatchTriggered, req)
}

// LowDiskSpaceTriggered says that the disk is nearly full.
func (c *Client) LowDiskSpaceTriggered(ctx context.Context, req *pb.LowDiskSpaceTriggeredInfo) error {
	req.Token = c.token
	return tell(ctx, c, callTime, pb.ContainerListenerClient.LowDiskSpaceTriggered, req)
}

// ForwardSecurityKeyMessage passes a message to the host's security key; it has no token.
func (c *Client) ForwardSecurityKeyMessage(ctx context.Context, req *pb.ForwardSecurityKeyMessageRequest) (*pb.ForwardSecurityKeyMessageResponse, error) {
	return ask(ctx, c, desktopTime, pb.ContainerListenerClient.ForwardSecurityKeyMessage, req)
}

// SelectFile has a person choose files, and waits for that.
func (c *Client) SelectFile(ctx context.Context, req *pb.SelectFileRequest) (*pb.SelectFileResponse, error) {
	req.Token = c.token
	return ask(ctx, c, choiceTime, pb.ContainerListenerClient.SelectFile, req)
}

// ReportMetrics hands over numbers.
func (c *Client) ReportMetrics(ctx context.Context, req *pb.ReportMetricsRequest) (*pb.ReportMetricsResponse, error) {
	req.Token = c.token
	return ask(ctx, c, callTime, pb.ContainerListenerClient.ReportMetrics, req)
}

// InstallShaderCache asks for a shader cache.
func (c *Client) InstallShaderCache(ctx context.Context, req *pb.InstallShaderCacheRequest) error {
	req.Token = c.token
	return tell(ctx, c, desktopTime, pb.ContainerListenerClient.InstallShaderCache, req)
}

// UninstallShaderCache gives a shader cache up.
func (c *Client) UninstallShaderCache(ctx context.Context, req *pb.UninstallShaderCacheRequest) error {
	req.Token = c.token
	return tell(ctx, c, desktopTime, pb.ContainerListenerClient.UninstallShaderCache, req)
}

// UnmountShaderCache has a shader cache unmounted.
func (c *Client) UnmountShaderCache(ctx context.Context, req *pb.UnmountShaderCacheRequest) error {
	req.Token = c.token
	return tell(ctx, c, desktopTime, pb.ContainerListenerClient.UnmountShaderCache, req)
}

// InhibitScreensaver keeps the screen on, until the cookie is given back.
func (c *Client) InhibitScreensaver(ctx context.Context, req *pb.InhibitScreensaverInfo) error {
	req.Token = c.token
	return tell(ctx, c, callTime, pb.ContainerListenerClient.InhibitScreensaver, req)
}

// UninhibitScreensaver gives a cookie of InhibitScreensaver back.
func (c *Client) UninhibitScreensaver(ctx context.Context, req *pb.UninhibitScreensaverInfo) error {
	req.Token = c.token
	return tell(ctx, c, callTime, pb.ContainerListenerClient.UninhibitScreensaver, req)
}
