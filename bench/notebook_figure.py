"""A figure of matplotlib that a notebook shows, whatever backend is chosen."""

import base64
import io

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A figure that is the last value of a notebook's cell is shown as an image."""

    def _repr_html_(self) -> str:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=110)
        image = base64.b64encode(file.getvalue()).decode()
        return f'<img src="data:image/png;base64,{image}">'
